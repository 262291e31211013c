"""nft in a pod, by what the product itself uses."""

from pyztun import NetNs, PyztunError
from pyztun.cni.capture import nft
from support import needs, pods


def require_nftables() -> None:
    """Skips where nftables cannot be used, or fails, as for the other needs."""
    try:
        with NetNs.create() as probe:
            run_nft(probe, "list ruleset\n")
    except PyztunError as error:
        needs.unmet(f"needs nftables: {error}")


def run_nft(netns: NetNs, text: str) -> str:
    """A text for nft, run in a pod."""
    return pods.in_netns(netns.fileno(), lambda: nft.find().run(text))
