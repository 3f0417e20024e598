"""Report pages, figures and exports, made from the files of run folders and study folders."""

from latentflows.reporting.comparison_page import write_comparison_report
from latentflows.reporting.export import export_study
from latentflows.reporting.parts import Row
from latentflows.reporting.run_page import write_run_report
from latentflows.reporting.table import comparison_table

__all__ = ["Row", "comparison_table", "export_study", "write_comparison_report", "write_run_report"]
