"""Many runs of `medfocal train` as one table: a row a setting, with the mean and spread over its seeds and folds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medfocal import __version__
from medfocal.errors import InputError
from medfocal.files import make_folder, write_csv, write_json
from medfocal.progress import track
from medfocal.report.summary_figures import write_curves_png, write_heat_map_png
from medfocal.report.summary_folds import CrossValidation, check_held_out, pool_folds, write_out_of_fold
from medfocal.report.summary_page import write_summary_page
from medfocal.report.summary_runs import Run, State, find_run_folders, read_run
from medfocal.report.summary_settings import Grouping, Setting, choose_experiments, group_runs, text_of
from medfocal.report.summary_spread import (
    FIGURES,
    Row,
    is_cross_validated,
    noise_words,
    summarize_setting,
    wanted_folds,
    why_undefined,
)
from medfocal.report.summary_table import Summary, fold_words, print_summary
from medfocal.report.tables import count
