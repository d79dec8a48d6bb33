"""Views of the stored truth, such as reports: the only files of a location that are replaced."""

from diffcert_ray.storage.location import Location


def replace_view(location: Location, name: str, data: bytes) -> None:
    """Write a view anew, in place of the one of before."""
    location.delete(name)
    location.create(name, data)
