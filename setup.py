"""What pyproject.toml cannot say: gin_configs/ lies beside the package here, in a wheel in it."""

from setuptools import find_packages, setup

GIN = "polylm_jax.gin_configs"
setup(
    packages=[*find_packages(include=["polylm_jax*"]), GIN],
    package_dir={GIN: "gin_configs"},
)
