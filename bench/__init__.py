"""The native microbenchmark: `python -m bench`, from the root of the repository.

Each row puts pyztun beside its floor, which is our own C program doing only the syscalls, and
beside other contenders where there are any. All contenders of a row take turns in many short rounds
of one run, because the speed of a host wanders by half within seconds: a ratio is taken within each
round, and the median of these ratios is what is compared with the budget.

    floor.c, client.c   the floor; the client that asks every receiver of the seed form
    *_zds.c             the same for ZDS: a ztunnel that is the floor, and the agent that asks
    relay_load.c        client and server of the connections that go through a relay
    statistics          medians, ratios, verdicts (pure)
    rounds, progress    whose turn it is; the bar on a terminal
    programs            compiles, starts and ends the contenders
    listen, listen_main, fdpass, peers, seed, zds, oneshot      one row each
    relay_throughput, relay_connections, relay_ping, relay_idle
    agent_add, pods, zds_pods, zds_snapshot, agent, agent_start
    crowd               a thousand pods, for the last of these
    relay_lanes         direct, HAProxy and ours, each in pods of its own, for the rows relay_*
    relay_haproxy, relay_rules, inpod     its configuration; the rules of all; commands in a pod
    control             a raw client of the agent's control socket
    ways                how people get a listener in a pod today, for the row peers
    machine, report     where it ran; the table and the JSON file

docs/performance.md describes the rows and how to read them.
"""
