"""Which vocabulary a run has: that of the model it begins from, or one of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from caudal.domain.workload import TrainSpec
from caudal.train.data.own import learn
from caudal.train.data.pretrained_files import pretrained_vocabulary
from caudal.train.data.vocabulary import Vocabulary


def vocabulary_of(
    spec: TrainSpec, words: Callable[[], Iterable[str]] = tuple, chat: bool = False
) -> Vocabulary:
    """The run's vocabulary: that of `spec.base`, else one that is learnt from `words()`, a stream of what is said in
    the data. `chat` says whether it is to know dialogues.

    Raises DataError where there is none that fits; NotFound, StorageFailed, Unreachable.
    """
    if spec.base.path:
        return pretrained_vocabulary(spec.base.path, chat)
    return learn(spec.tokenizer, words(), chat)
