"""From counts or losses to certified radii, and from certificates to figures."""
