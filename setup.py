"""What pyproject.toml cannot say: the wheel holds two folders of the checkout inside the package `reid`."""

from setuptools import find_packages, setup

setup(
    # `datasets` is also the name of another project's package: it is used from the checkout and not shipped
    packages=[*find_packages(include=["reid", "reid.*", "scgnet", "mgn"]), "reid.weights", "reid.configs"],
    package_dir={"reid.weights": "weights", "reid.configs": "configs"},
    package_data={
        "reid": ["py.typed"],
        "reid.weights": ["scgnet_s.safetensors", "scgnet_s.md"],
        "reid.configs": ["folder.yaml", "imagenet.yaml"],
    },
    include_package_data=False,
)
