"""A radius that a person reads is never above the true one."""

import re

import pytest

from diffcert_ray.attack.image import ImageAttack, Judgement
from diffcert_ray.attack.run import Attack
from diffcert_ray.certificates.reach import largest_radius
from diffcert_ray.commands import attack, plan
from diffcert_ray.config.loading import load_config
from diffcert_ray.errors import ConfigError
from diffcert_ray.run.estimate import SigmaEstimate
from diffcert_ray.run.plan import plan_of
from diffcert_ray.run.reachable import check_radii, doubts
from tests.worlds import settings, small_world

IDEAL = {"slack": 0.0, "taken_off": 0.0}  # real arithmetic, as `certificate`

VOTES, CEILING = 41, 0.25374  # largest_radius at sigma 0.25 and alpha 0.001 has ceiling 0.25375


def test_the_attacks_table(capsys):
    one = ImageAttack(0.25, 7, 3, 0.75064, seed=0, furthest=0.8)
    attack._say("run", Attack(Judgement(500, 1e-4, 10), 0, 1, [one]))
    row = capsys.readouterr().out.split("7  ")[1]
    assert "0.750" in row
    assert "0.751" not in row


def test_how_far_an_attack_found_no_change():
    one = ImageAttack(0.25, 7, 3, 1.0, seed=0, furthest=1.999)
    assert attack._share(one) == "> 1.99"


def test_the_largest_radius_of_a_plan(capsys):
    sigma = SigmaEstimate(0.25, 0.75064, 1000, 100.0, False, 10.0, 100, 1000.0)
    plan._say_sigmas("title", (sigma,))
    assert re.search(r" 0\.750\s", capsys.readouterr().out)


def test_the_ceiling_of_settings_that_ask_for_more():
    assert CEILING < largest_radius(VOTES, 0.25, 0.001, "clopper-pearson", **IDEAL) < CEILING + 1e-4
    world, data = small_world()
    far = load_config(settings(votes={"n": VOTES, "radii": [0.254]}))
    with pytest.raises(ConfigError, match=r"at most radius 0\.253 at sigma 0\.25 "):
        check_radii(plan_of(far, data))
    near = load_config(settings(votes={"n": VOTES, "radii": [0.254], "sigmas": [0.25, 0.5]}))
    (doubt,) = doubts(near, plan_of(near, data), world.num_classes, sifted=True)
    assert "certifies at most 0.253;" in doubt
