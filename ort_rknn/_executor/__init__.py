"""One loaded model on its cores: signature, calls, dispatch, lanes, executor."""
