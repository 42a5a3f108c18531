"""`root_path` where no setting says it: the argument of layers."""

from prefork.config.rootpath import RootPath, is_root_path


def checked(root_path: str) -> str:
    """The prefix as it is. Raises ValueError for what the setting would refuse."""
    if not is_root_path(root_path):
        raise ValueError(f"root_path is {RootPath.syntax}, not {root_path!r}")
    return root_path
