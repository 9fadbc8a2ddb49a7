"""Rule 8: state documents and their patches. Above `log`, below `lives`.

The patches are applied by jsonpatch and not by helix: a second opinion.
"""

from __future__ import annotations

import copy

import jsonpatch

from helix.chunks import RunStart, StatePatch
from helix.testing.check.log import Agent, Document, Log


def document_begins(log: Log, agent: Agent, chunk: RunStart) -> None:
    if chunk.state_id is None:
        agent.document = Document(agent.agent_id, copy.deepcopy(chunk.state))
        return
    document = agent.parent.document if agent.parent else None
    if document is None or document.owner_id != chunk.state_id:
        message = f"{agent.agent_id} shares the state of {chunk.state_id}, on which its parent does not work"
        log.broken("shared-state-known", chunk, message)
        document = Document(chunk.state_id, None, lost=True)
    elif not document.lost and document.value != chunk.state:
        message = f"{agent.agent_id} shares the state of {chunk.state_id}, and it is not as its run_start says"
        log.broken("shared-state-equal", chunk, message)
    agent.document = document


def patch_applies(log: Log, agent: Agent, chunk: StatePatch) -> None:
    target = agent.agent_id if chunk.state_id is None else chunk.state_id
    document = agent.document
    if document is None:  # its run_start was not seen, and that was told
        return
    if document.owner_id != target:
        message = f"{agent.agent_id} patches the document of {target} and works on that of {document.owner_id}"
        log.broken("patch-addressed", chunk, message)
        return
    if document.lost:
        return
    try:  # on a copy of the patch: its values become part of the document, and later patches change them
        document.value = jsonpatch.apply_patch(document.value, copy.deepcopy(chunk.patches), in_place=True)
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as error:
        document.lost = True
        log.broken("patch-applies", chunk, f"the patch does not apply to the document of {target}: {error}")
