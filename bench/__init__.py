"""The native microbenchmark: `python -m bench`, from the root of the repository.

Each row puts pyztun beside its floor, which is our own C program doing only the syscalls, and
beside other contenders where there are any. All contenders of a row take turns in many short rounds
of one run, because the speed of a host wanders by half within seconds: a ratio is taken within each
round, and the median of these ratios is what is compared with the budget.

    floor.c, client.c   the floor; the client that asks every receiver of the seed form
    statistics          medians, ratios, verdicts (pure)
    rounds              whose turn it is
    programs            compiles, starts and ends the contenders
    listen, seed, oneshot, pods      one row each
    machine, report     where it ran; the table and the JSON file
"""
