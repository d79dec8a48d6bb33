"""The tables of one series: the figures of its dataset, and those derived in other norms."""

from diffcert_ray.report.dataset_tables import dataset_tables
from diffcert_ray.report.derived_tables import derived_text
from diffcert_ray.report.series import Series
from diffcert_ray.report.text_table import TextTable


def series_tables(one: Series) -> list[TextTable]:
    """All tables of a series, those of other norms last.

    Raises:
        ValueError: rows that must not be compared with each other.
    """
    derived = [
        derived_text(one.certificates, one.radii, one.title, norm, one.dimensions or 1, one.asked)
        for norm in one.norms
    ]
    return [*dataset_tables(one.certificates, one.radii, one.title, one.asked), *derived]
