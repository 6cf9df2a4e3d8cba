"""Output of subprocesses, without lines that other libraries of the test environment print by themselves."""

import re


# bitsandbytes 0.50, imported by peft, asks for kernels from the Hub as it is imported.
_WARNING_OF_BITSANDBYTES = re.compile(
    r"^Failed to load CPU gemm_4bit_forward from kernels-community.*\n", flags=re.MULTILINE
)
# torchao 0.18 is imported by transformers where it is installed, and sets off this warning of torch's log.
_WARNINGS_OF_TORCHAO = re.compile(r"^W\d{4} .*torch/utils/_pytree\.py.*\n", flags=re.MULTILINE)


def own_output(text: str) -> str:
    """`text` without the lines that are not ours."""
    return _WARNING_OF_BITSANDBYTES.sub("", _WARNINGS_OF_TORCHAO.sub("", text))
