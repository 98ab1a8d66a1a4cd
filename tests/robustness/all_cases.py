"""All cases of bad input."""

from call_cases import LIBRARY
from check_cases import CHECK
from data_cases import DATA, LABELS
from environment_cases import ENVIRONMENT
from folder_cases import FOLDERS
from odd_cases import ODD
from run_cases import CHECKPOINTS, RUN_FOLDER, STORED_LABELS
from setting_cases import SETTINGS
from stale_cases import CHANGED, WEIGHTS

CASES = [
    *DATA,
    *LABELS,
    *FOLDERS,
    *ODD,
    *STORED_LABELS,
    *SETTINGS,
    *CHECKPOINTS,
    *WEIGHTS,
    *RUN_FOLDER,
    *CHANGED,
    *ENVIRONMENT,
    *LIBRARY,
    *CHECK,
]
