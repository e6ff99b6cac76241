"""Put recipes/, which lies at the top of the repository, into the package as hfbert_scratch/recipes.

Everything else is in pyproject.toml, which cannot both find packages and add one that lies elsewhere.
"""

from setuptools import find_packages, setup


setup(
    packages=[*find_packages("src"), "hfbert_scratch.recipes"],
    package_dir={"": "src", "hfbert_scratch.recipes": "recipes"},
)
