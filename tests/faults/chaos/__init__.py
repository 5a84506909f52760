"""The chaos run: all parts at work, faults at random, then what was published against what was shown.

`make chaos`, or ``python -m tests.faults.chaos --seconds 60 --seed 7``. `world` holds the processes, `faults` what is
done to them and `schedule` when, `publishers`, `sender`, `tasks` and `clients` are the load, each with a `journal`;
`oracle` reads the journals and names what is wrong. `run` puts it all together.
"""
