"""Processing: images to pixel values, text to token ids and back, and the image-to-text pipeline."""
