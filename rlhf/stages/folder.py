"""A stage's folder: it belongs to one run, whose settings are in `config.yaml`."""

from __future__ import annotations

from pathlib import Path

from rlhf.config import differences, read_yaml
from rlhf.errors import ConfigError
from rlhf.files import claim_folder, empty_folder, lock_folder, write_yaml
from rlhf.stage_config import RunSettings
from rlhf.stages.result import CONFIG_NAME, DONE_NAME


def open_folder(config: RunSettings, package: str, *, overwrite: bool = False) -> bool:
    """Lock the stage's folder and write `config.yaml`; False when the stage is finished there.

    Raises ConfigError when the folder was not written by a run, is in use, or holds a run with other settings.
    """
    folder = config.output_dir
    claim_folder(folder)
    lock_folder(folder, wait=3.0)  # ranks of a run that was killed a moment ago may still be ending
    if overwrite:
        empty_folder(folder)
    refuse_differences(folder / CONFIG_NAME, config, package)
    finished = (folder / DONE_NAME).exists()
    if not finished:
        write_yaml(folder / CONFIG_NAME, config.model_dump(mode="json"))
    return not finished


def refuse_differences(path: Path, config: RunSettings, package: str) -> None:
    """Raise ConfigError when `path` holds other settings than `config`, apart from those that a resume may change."""
    if not path.exists():
        return
    changed = differences(read_yaml(path), config)
    if changed:
        raise ConfigError(
            f"{path.parent} holds a run of {package} with other settings ({'; '.join(changed)}); "
            "use the same ones to resume it, --overwrite to start again, or another output folder"
        )
