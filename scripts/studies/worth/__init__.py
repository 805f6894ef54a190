"""What is each method worth? ``plan.py`` is data; then ``data.py``, ``runs.py``, ``report.py``."""

from scripts.studies.worth.report import tables

__all__ = ["tables"]
