"""What every code says: error codes of the log, exceptions, rules of the judge. The one place for these texts.

Floor 7, but only data: `explain` shows it, and a test holds the tables of `docs/agents-and-tools.md` to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from helix import errors, results

_NOT_HERE = "This version of helix does not write it; a log of another version may have it."


@dataclass(slots=True, frozen=True)
class Explanation:
    """What a code means, what usually causes it, and what to do."""

    meaning: str
    cause: str
    cure: str


CODES: dict[str, Explanation] = {
    "model_rate_limited": Explanation(
        "the provider takes no more requests for now, or the account has no quota left",
        "Many agents asking at once; or an account without credit (the error's sentence says so, and nothing is tried "
        "again).",
        "Bound the calls that are open at once with Limits(concurrency=…); raise ModelSettings(max_retries=…, "
        "retry_delay=…); look at the account's quota.",
    ),
    "model_unavailable": Explanation(
        "the provider cannot be reached, does not answer in time, or has a fault of its own",
        "No network, a wrong base URL, a proxy, an overloaded provider, or a ModelSettings(timeout=…) that is short.",
        "Run `helix doctor`: it tries the base URLs. It is tried again up to max_retries; then resume or run again.",
    ),
    "model_stream_dropped": Explanation(
        "the model's reply broke off before it was complete",
        "A proxy or a server that closes long connections, or an overloaded provider.",
        "Nothing, if it passes: the step is asked anew, up to max_retries. Else look at what is between you and the "
        "provider.",
    ),
    "model_rejected": Explanation(
        "the provider refuses the request as it is",
        "A wrong key, an unknown model, a setting that the model does not take, or a conversation that is too long.",
        "Read the provider's sentence, and `detail` of the `error` chunk; correct the name, the key (`helix doctor` "
        "lists those it finds) or the settings.",
    ),
    "model_filtered": Explanation(
        "the provider's filter or the model itself declines to answer",
        "The input or the answer offends a content policy, or the model refuses a structured output.",
        "Say it differently, or ask another model. result.messages has what the model was asked.",
    ),
    "tool_failed": Explanation(
        "a tool's body raised, or asked the model to try again",
        "An exception in your function (its kind and text are in the error), or ModelRetry; a run that ends with it "
        "has a tool that failed in more steps in a row than its `retries`.",
        "Mend the tool, or raise ModelRetry with what the model should do instead. Call it alone with "
        "helix.testing.context.",
    ),
    "tool_unknown": Explanation(
        "the model called a tool that the agent does not have; nothing was run",
        "The instructions name a tool that is not in `tools`, or the model made one up.",
        "Name the tools in the instructions as they are called. The model has read their names and may try again.",
    ),
    "tool_invalid_arguments": Explanation(
        "the model called a tool with arguments that do not fit; nothing was run",
        "Parameters without a description, types that are hard to write, or arguments cut off by max_tokens.",
        "Describe the parameters in the docstring, loosen their types, raise max_tokens. The model has read why and "
        "may try again.",
    ),
    "tool_denied": Explanation(
        "somebody who was asked said no, or did not answer in time; nothing was run",
        "An approval was denied or expired; or nobody could be asked (helix.run without on_approval).",
        "Nothing, if that was meant. The model has read the reason. Else give on_approval=, or answer with respond().",
    ),
    "tool_timeout": Explanation(
        "a body, or a sub-agent's call, took longer than its `timeout`",
        "A slow service, or a sync tool that waits; its thread may still be working.",
        "Raise @tool(timeout=…) or as_tool(timeout=…); look at ctx.cancelled in long sync tools.",
    ),
    "tool_outcome_unknown": Explanation(
        "the run stopped while a body worked that must not run twice",
        "An interruption or a crash in the middle of a tool with replay='never', which is the default.",
        "Mark tools that may run again with @tool(replay='safe'); else look at what the call has done.",
    ),
    "output_invalid": Explanation(
        "the model gave no valid structured output",
        "An output type with constraints that its JSON Schema cannot say, or an answer cut off by max_tokens; and "
        "asked again, with the reason and for the output alone, output_retries times, the model did no better.",
        "Describe the fields, loosen the constraints, raise output_retries or max_tokens.",
    ),
    "limit_steps": Explanation(
        "an agent has made as many model calls as Limits(steps=…) allows",
        "A loop: the model calls tools again and again; or a task that needs more than 50 steps. With an output type, "
        "one call more was made, for the output alone, and brought none.",
        "Look at the last steps in the log; raise Limits(steps=…), or say in the instructions when to stop.",
    ),
    "limit_tokens": Explanation(
        "the subtree has used the tokens that Limits(total_tokens=…) allows",
        "Long conversations, or many children.",
        "print(result) shows who used how many; raise the limit or give the children limits of their own.",
    ),
    "limit_cost": Explanation(
        "the subtree has cost what Limits(cost=…) allows",
        "Long conversations, many children; or a model whose price is not known, started by a tool.",
        "print(result) shows whose branch cost how much; raise the limit, or give Executor(prices=…) the price.",
    ),
    "limit_requests": Explanation(
        "the subtree has made as many model calls as Limits(requests=…) allows",
        "Retries count too, and one call is kept back for each agent that waits for its children.",
        "Raise Limits(requests=…), or delegate less.",
    ),
    "limit_depth": Explanation(
        "a child was not started: it would stand deeper than Limits(depth=…) allows",
        "Agents that delegate to each other in turn.",
        "Raise Limits(depth=…), or take sub_agents away from those below.",
    ),
    "limit_fan_out": Explanation(
        "a call was not run: its step asked for more calls than Limits(fan_out=…) allows",
        "The model asked for everything at once.",
        "Raise Limits(fan_out=…), or ask for less at a time; the model reads that these calls were not run.",
    ),
    "limit_time": Explanation(
        "the subtree was cut: it has taken the time that Limits(seconds=…) allows",
        "Slow models or tools; pauses are not counted.",
        "Raise Limits(seconds=…); result.messages has what there was.",
    ),
    "subagent_failed": Explanation(
        "a child failed; the sentence says why",
        "Whatever ended the child: its own run_end has the code.",
        "Explain that code. The parent goes on, unless its model gives up.",
    ),
    "state_invalid": Explanation("a state does not fit its type", _NOT_HERE, "Correct the state, or its type."),
    "state_conflict": Explanation(
        "two writers changed the same place of a state",
        _NOT_HERE + " This one joins them and lists the places in `state_patch.conflicts`.",
        "Let each writer have a place of its own.",
    ),
    "recovery_limit": Explanation(
        "a run was taken up again too often",
        "Its process died five times, and no model call and no tool had ended in between; or it died in five steps in "
        "a row while the same tool ran. It may be what kills it.",
        "Look at what it does first when it goes on (`helix show RUN`), and at why the process ended.",
    ),
    "cancelled": Explanation(
        "the call's branch was cancelled, or its agent ended before it was answered",
        "handle.cancel(), the end of a run or of a limit's time, or Ctrl-C.",
        "Nothing; the log says who ended first.",
    ),
    "internal": Explanation(
        "something unexpected: in a model, instructions, an output validator, or in helix itself",
        "A model object or an instructions function that raised; a scripted model without turns.",
        "Read `detail` of the `error` chunk and the program's log (logger `helix`), which has the traceback; if it "
        "is helix's own, report it.",
    ),
}
"""By the error codes of the protocol, which stand in `error`, `tool_end` and `run_end` chunks."""

EXCEPTIONS: dict[type[Exception], str] = {
    errors.DefinitionError: "correct the agent, tool, state or output type; nothing has run",
    errors.UnknownModel: "correct the name; nothing has run",
    errors.MissingKey: "set the key in the environment, or pass it; nothing has run",
    errors.UsageError: "a call in the wrong place or order; the message says what to write",
    results.RunFailed: "look at `.result`, and explain its error code",
    results.RunCancelled: "look at `.result`: it has everything up to then",
    results.RunSuspended: "look at `.result`; `Executor.resume` goes on",
    errors.SessionBusy: "wait for the session's last run, resume it, or cancel it",
    errors.RunExists: "choose another `run_id`, or none: then it is random",
    errors.RunBusy: "tell its owner by the handle, or ask again after `.remaining` seconds",
    errors.RunEnded: "begin a new run in its session",
    errors.StaleWriter: "read on by the handle; the other owner goes on with the run",
    errors.StoreError: "as the message says; what was shown is kept, and `Executor.recover()` goes on later",
    errors.UnknownRun: "give the executor the store that has it",
    errors.UnknownAgent: "give it as Executor(agents=[…])",
    errors.UnknownApproval: "answer an id of `handle.tree.pending`",
    errors.AlreadyAnswered: "nothing: it is decided; `.decision` says how",
    errors.InvalidAnswer: "answer again, as the message says; the request still waits",
    errors.AgentEnded: "talk to an agent that is still running, or begin a new run in the session",
    errors.StateError: "assign what the state's type allows",
    errors.ToolEnded: "the call is over; return",
    errors.LimitReached: "`ctx.run_agent` would exceed a limit; `.code` says which",
    errors.InvalidChunk: "the log is not well-formed; `helix check` says where",
    errors.InvalidPatch: "the patch is not well-formed, or not for this document",
    errors.ModelError: "raised by models, to say how a call failed; `.code` says what",
}
"""What to do about each exception; what it means is its docstring."""

_WRITER = "If helix wrote the log, it is a bug: please report it, with the log."
_CUT = "The file was cut or is still being written (then judge it with --prefix), or lines were lost or edited."
_FOREIGN = "The log was edited, filtered, or written by another program."

RULES: dict[int, Explanation] = {
    0: Explanation("the fields", _FOREIGN, f"Correct the field. {_WRITER}"),
    1: Explanation(
        "the numbers",
        "Chunks were lost, doubled or joined from two runs; or it is a filtered or coalesced stream, not a whole log.",
        f"Save the stream unfiltered, from offset 0. {_WRITER}",
    ),
    2: Explanation("the lives of agents", _CUT, f"Save the stream to its end. {_WRITER}"),
    3: Explanation(
        "the steps",
        "Lines were lost or edited; or a model adapter reports other words than it streams.",
        f"With a model of your own: report each piece once, by `emit`. {_WRITER}",
    ),
    4: Explanation("the calls", _FOREIGN, _WRITER),
    5: Explanation("the children", "Lines were lost, or the log is of one branch only.", _WRITER),
    6: Explanation("pauses", "Two owners wrote at once, or lines were lost around a pause.", _WRITER),
    7: Explanation(
        "the ids of calls",
        "A model or a proxy that uses an id twice, or a history joined by hand.",
        f"Leave ids to the provider; do not join histories of two runs. {_WRITER}",
    ),
    8: Explanation("the state", "Patches were lost or edited, so that they no longer fit the document.", _WRITER),
    9: Explanation("usage", "step_end chunks were lost, or usage was added by hand.", _WRITER),
    10: Explanation("outputs and errors", _FOREIGN, _WRITER),
    11: Explanation("the conversation", "Messages were edited or put in by hand.", _WRITER),
}
"""By the number of the judge's rule; what each of its sub-rules means stands in `helix.testing.GRAMMAR`."""

SUB_RULES: dict[str, Explanation] = {
    "run-end-missing": Explanation(
        "",
        "The process stopped before the run ended, or the file was cut.",
        "Judge it with --prefix; or resume the run, which writes the end.",
    ),
    "sequence-dense": Explanation(
        "",
        "Lines were lost or doubled, or the stream was filtered, coalesced or read from a later offset.",
        "Save handle.stream() as it is, from offset 0.",
    ),
    "error-code": Explanation(
        "",
        "A newer version of the protocol, or a code of your own.",
        "Use one of the codes that `helix explain` lists.",
    ),
    "call-id-unique": Explanation(
        "",
        "A model or a proxy that numbers its calls anew in each answer.",
        "Let it give ids that are unique in the conversation.",
    ),
}
"""What is particular about a sub-rule, over the text of its rule."""
