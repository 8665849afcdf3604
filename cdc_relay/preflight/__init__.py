"""What MySQL and Kafka must be like: each requirement one named check, with the statement that mends it.

``facts`` asks the server, ``mysql`` judges what it said (pure), ``probes`` tries what only trying can tell, ``kafka``
looks at the other side; ``report`` puts them together for ``cdc-relay check``, ``start`` takes the few that a start
depends on.
"""
