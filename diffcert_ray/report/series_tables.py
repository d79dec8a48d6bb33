"""The tables of one series: the first screen, the figures of its dataset, those in other norms."""

from diffcert_ray.report.dataset_tables import dataset_tables
from diffcert_ray.report.derived_tables import derived_text
from diffcert_ray.report.first_screen import first_screen
from diffcert_ray.report.series import Series
from diffcert_ray.report.text_table import TextTable


def series_tables(one: Series) -> list[TextTable]:
    """All tables of a series, the first screen first, those of other norms last.

    Raises:
        ValueError: rows that must not be compared with each other.
    """
    derived = [
        derived_text(one.certificates, one.radii, one.title, norm, one.dimensions or 1, one.asked)
        for norm in one.norms
    ]
    rest = dataset_tables(one.certificates, one.radii, one.title, one.asked, one.reach)
    return [first_screen(one), *rest, *derived]
