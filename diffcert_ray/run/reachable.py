"""Whether votes can certify what is asked of them: refused where not, doubted where hardly."""

from diffcert_ray.certificates.radius import round_radius_down
from diffcert_ray.certificates.reach import largest_radius, required_n
from diffcert_ray.config.tables import Config
from diffcert_ray.errors import ConfigError
from diffcert_ray.method.from_config import refines_as_released
from diffcert_ray.method.noise_levels import REFERENCE_REFINING_POINTS
from diffcert_ray.votes.image import Plan


def check_radii(plan: Plan) -> None:
    """Refuse radii that even unanimous votes could not certify at any of the sigmas.

    Raises:
        ConfigError: with the n that would do.
    """
    sigma = max(plan.sigmas)
    most = ceiling(plan, sigma)
    out_of_reach = [r for r in plan.radii if r > 0 and r >= most]
    if out_of_reach:
        worst = max(out_of_reach)
        needed = required_n(
            worst,
            sigma,
            plan.alpha,
            plan.bound,
            slack=plan.slack(sigma),
            taken_off=plan.taken_off(),
        )
        raise ConfigError(
            f"votes.n = {plan.n} at alpha {plan.alpha} certifies at most radius "
            f"{round_radius_down(most, 3)} at sigma {sigma} (every vote agreeing), below "
            f"the asked radius {worst}: set votes.n to {needed} or more, use a larger "
            "sigma, or drop the radius from votes.radii"
        )


def doubts(config: Config, plan: Plan, classes: int, *, sifted: bool) -> list[str]:
    """Settings that are allowed, and can hardly be meant: a sentence for each, with the remedy.

    With ``sifted``, a rule of [sift] decides how many evaluations a vote takes.
    """
    sentences: list[str] = []
    for sigma in plan.sigmas:
        most = ceiling(plan, sigma)
        if beyond := [f"{r:g}" for r in plan.radii if r > 0 and r >= most]:
            sentences.append(
                f"at sigma {sigma:g} no image can reach radius {', '.join(beyond)}: n = {plan.n} "
                f"at alpha {plan.alpha:g} certifies at most {round_radius_down(most, 3)}; "
                "raise votes.n, or leave out the sigma or the radius"
            )
    if plan.bound == "sequential" and plan.n < 5 * plan.unit:
        sentences.append(
            f"sequential looks every votes.unit = {plan.unit} votes, {plan.n // plan.unit} times "
            f"up to votes.n = {plan.n}: it can hardly stop early; set votes.unit to "
            f"{max(1, plan.n // 50)} or raise votes.n"
        )
    if plan.bound == "sequential" and max(plan.radii) == 0:
        sentences.append(
            "sequential stops an image once the largest of votes.radii is certified, and that is "
            "0: certified radii will hardly exceed 0; add the radii that you want to know about"
        )
    if plan.estimate == "target" and (not sifted or config.sift.rule == "full"):
        reason = 'sift.rule "full"' if sifted else f'method "{config.method.name}"'
        sentences.append(
            f'votes.estimate = "target" saves no evaluation with {reason}, and forgets which other '
            'classes were voted for: set "complete"'
        )
    if sifted and config.sift.rule == "threshold" and config.sift.keep >= classes:
        sentences.append(
            f"sift.keep = {config.sift.keep} of {classes} classes: the rule threshold never drops "
            "one; set a smaller sift.keep"
        )
    asked = config.noise_levels.levels
    if sifted and refines_as_released(config) and asked != REFERENCE_REFINING_POINTS:
        sentences.append(
            f"noise_levels.levels = {asked}: the released sift-and-refine refines on "
            f"{REFERENCE_REFINING_POINTS} points whatever its grid; set it to "
            f'{REFERENCE_REFINING_POINTS}, or noise_levels.weights to "edm"'
        )
    return sentences


def must_abstain(plan: Plan) -> list[str]:
    """A sentence for each sigma at which n is too small for any certificate, at r = 0 too."""
    return [
        f"at sigma {sigma:g} every image must abstain, at radius 0 too: n = {plan.n} unanimous "
        f"votes at alpha {plan.alpha:g} certify nothing; set votes.n to "
        f"{_least_n(plan, sigma)} or more"
        for sigma in plan.sigmas
        if ceiling(plan, sigma) <= 0
    ]


def _least_n(plan: Plan, sigma: float) -> int:
    off = {"slack": plan.slack(sigma), "taken_off": plan.taken_off()}
    return required_n(0.0, sigma, plan.alpha, plan.bound, **off)


def ceiling(plan: Plan, sigma: float) -> float:
    """The radius that unanimous votes certify for an image on the grid."""
    off = {"slack": plan.slack(sigma), "taken_off": plan.taken_off()}
    return largest_radius(plan.n, sigma, plan.alpha, plan.bound, **off)
