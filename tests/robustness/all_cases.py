"""All cases of bad input."""

from call_cases import LIBRARY
from data_cases import DATA, LABELS
from environment_cases import ENVIRONMENT
from run_cases import CHECKPOINTS, RUN_FOLDER, STORED_LABELS
from setting_cases import SETTINGS

CASES = [*DATA, *LABELS, *STORED_LABELS, *SETTINGS, *CHECKPOINTS, *RUN_FOLDER, *ENVIRONMENT, *LIBRARY]
