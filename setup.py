"""Metadata and dependencies of deltasam_fairseq; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# Read, not imported: the package may have dependencies that are not there yet.
VERSION = re.search(
    r'^__version__ = "(.+)"$', (HERE / "deltasam_fairseq" / "__init__.py").read_text(), re.MULTILINE
).group(1)

TEST = ["hypothesis", "pytest>=8.2", "pytest-xdist", "safetensors", "tokenizers"]

setup(
    name="deltasam_fairseq",
    version=VERSION,
    description="Sharpness-aware training (SAM and δ-SAM) for fairseq, as a plugin",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="deltasam_fairseq authors",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["deltasam_fairseq", "deltasam_fairseq.*"]),
    # plugin_dir is the folder that `deltasam user-dir` prints. fairseq puts it on
    # sys.path, so it must not be a package itself, and find_packages skips it.
    package_data={
        "deltasam_fairseq": ["py.typed", "plugin_dir/deltasam_user_dir/*.py"],
        "deltasam_fairseq.evaluation": ["wordnet_exceptions/*"],
    },
    # fairseq is an extra: two distributions install the same module `fairseq`,
    # and one must not overwrite the other that a user already has.
    install_requires=["torch>=2.1", "numpy", "sacrebleu", "rouge-score", "nltk", "sentencepiece"],
    extras_require={
        "fairseq": ["fairseq-fixed==0.12.3.1"],
        "huggingface": ["safetensors"],
        "transformers": ["transformers>=4.57", "accelerate>=1.1"],
        "bert": ["safetensors", "tokenizers"],
        "plots": ["matplotlib"],
        "test": TEST,
        # The linters' minor versions are fixed: a new one brings new complaints.
        "dev": [*TEST, "mypy==2.4.*", "ruff==0.17.*"],
    },
    entry_points={"console_scripts": ["deltasam = deltasam_fairseq.cli.main:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
