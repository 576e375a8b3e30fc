"""Build records in SafeEdit's form from a list of topics, in three parts that share no question and no attack.

    python scripts/build_safety_cases.py TOPICS.json --out FOLDER [--attacks-each 15] [--attacks-a-question 1]

The list is one JSON object::

    {"topics": {"CATEGORY": [{"question": "...", "safe": "...", "unsafe": "..."}, ...], ...},
     "attacks": [{"text": "... [QUESTION] ...", "family": "role play"}, ...],
     "constraints": [{"prompt": "...", "answer": "..."}, ...]}

Each category needs a multiple of six questions (twelve or more for a test part whose probes can ask something else);
the published numbers are 9 categories of 60 questions, 48 attacks with 15 a part, and 4,050, 2,700 and 1,350 records.
``errata safety --file FOLDER/test.json`` measures with them. ``benign`` in place of the list writes the records of the
made-up topic that comes with Errata.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from errata.datasets.restricted import benign_safety_cases
from errata.datasets.safeedit import write_safeedit
from errata.datasets.safety_building import SPLITS, build_safety_cases
from errata.datasets.topic_list import read_topic_list
from errata.errors import ErrataError

BENIGN = "benign"


def main(arguments: Sequence[str] | None = None) -> int:
    """Build and write; 2 where the list cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topics", help="a file, or benign")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--attacks-each", type=int, help="attacks a part has; by default a third")
    parser.add_argument("--attacks-a-question", type=int, help="of them for each question, by turns; by default all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        given = None if options.topics == BENIGN else read_topic_list(options.topics)
        for split in SPLITS:
            turns, seed = options.attacks_a_question, options.seed
            if given is None:
                cases = benign_safety_cases(split, attacks_a_question=turns, seed=seed)
            else:
                cases = build_safety_cases(
                    given.topics, given.attacks, given.constraints, split=split, attacks_each=options.attacks_each,
                    attacks_a_question=turns, seed=seed,
                )  # fmt: skip
            path = options.out / f"{split}.json"
            write_safeedit(path, cases)
            print(f"{len(cases):6} records in {path}")
    except ErrataError as error:
        print(f"build_safety_cases: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
