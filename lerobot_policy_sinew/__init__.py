"""Sinew's policies as a policy type of LeRobot: `lerobot-train --policy.type=sinew --policy.kind=flow …`.

LeRobot imports by itself what is installed as a distribution whose name begins with lerobot_policy_: `pip install
./lerobot_policy_sinew` in Sinew's source tree makes it one. Otherwise add --policy.discover_packages_path=lerobot_policy_sinew.
Needs lerobot; nothing in Sinew imports this package.
"""

from lerobot_policy_sinew.configuration_sinew import SinewConfig

__all__ = ["SinewConfig"]
