"""The parts of the report of a run: `cpsl.app.report` is the command."""
