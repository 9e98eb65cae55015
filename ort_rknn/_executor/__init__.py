"""One loaded model on its cores: signature, calls, dispatch, lanes, the executor."""
