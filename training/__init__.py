"""Fine-tuning and evaluation of the models. Nothing that models or processors need is here, nor is it bundled."""
