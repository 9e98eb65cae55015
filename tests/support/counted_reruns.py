"""With ``--reruns``: more than two tests that passed only on a rerun fail the run. Tests with a time limit, marked
``wall_clock``, are not counted: a busy machine is the reason."""

MOST = 2


def run_again(config):
    """The tests that were rerun, by name."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not config.getoption("reruns", None):
        return []
    return sorted({r.nodeid for r in reporter.stats.get("rerun", []) if "wall_clock" not in r.keywords})


def pytest_sessionfinish(session, exitstatus):
    if exitstatus == 0 and len(run_again(session.config)) > MOST:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter, config):
    names = run_again(config)
    if names:
        verdict = f"more than {MOST} fail the run" if len(names) > MOST else f"up to {MOST} are accepted"
        terminalreporter.write_line(f"{len(names)} tests were run again ({verdict}): {', '.join(names)}")
