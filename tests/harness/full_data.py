"""Small files of our own invention in the form of the public sets, with right and wrong answers."""

import json
from pathlib import Path
from typing import Any

MMLU = [
    "anatomy",
    "clinical_knowledge",
    "college_biology",
    "college_medicine",
    "medical_genetics",
    "professional_medicine",
    "nutrition",
    "virology",
    "human_aging",
]


def choice_question(number: int) -> dict[str, Any]:
    return {"question": f"Which of these is number {number}?", "choices": ["zero", "one", "two", "three"], "answer": number}


# task → split, documents, right answers, wrong answers
SETS: dict[str, tuple[str, list[dict[str, Any]], list[str], list[str]]] = {
    "gsm8k": (
        "test",
        [
            {"question": "Ann has 3 pens and buys 4. How many pens?", "answer": "3+4=<<3+4=7>>7 pens.\n#### 7"},
            {"question": "A car costs 1,200 dollars more than 300.", "answer": "Add them.\n#### 1,500"},
        ],
        [r"3 + 4 = 7, so \boxed{7}", "The answer is $1,500."],
        [r"\boxed{8}", "I cannot say."],
    ),
    "math500": (
        "test",
        [
            {
                "problem": "What is $1/2 + 1/4$?",
                "solution": r"$\boxed{\frac{3}{4}}$",
                "answer": r"\frac{3}{4}",
                "subject": "Prealgebra",
                "level": 1,
                "unique_id": "test/prealgebra/1.json",
            },
            {
                "problem": "Solve $x^2=2$.",
                "solution": r"$x=\boxed{\pm\sqrt 2}$",
                "answer": r"\sqrt{2}, -\sqrt{2}",
                "subject": "Algebra",
                "level": 2,
                "unique_id": "test/algebra/1.json",
            },
        ],
        [r"$\boxed{0.75}$", r"$\boxed{\pm\sqrt{2}}$"],
        [r"$\boxed{\frac{1}{4}}$", r"$\boxed{\sqrt{2}}$"],
    ),
    "aime24": (
        "test",
        [{"ID": "2024-X-1", "Problem": "Find $6^2-3$.", "Solution": "It is 33.", "Answer": 33}],
        [r"$\boxed{033}$"],
        [r"$\boxed{36}$"],
    ),
    "aime25": ("test", [{"problem": "Find $6^2-3$.", "answer": "33", "id": "0"}], [r"$\boxed{33}$"], [r"$\boxed{3}$"]),
    "medqa": (
        "test",
        [
            {
                "question": "A runner has cramps after a marathon. Which salt is lost in sweat most?",
                "answer": "Sodium chloride",
                "options": {"A": "Iron sulfate", "B": "Sodium chloride", "C": "Zinc oxide", "D": "Lead nitrate"},
                "meta_info": "step1",
                "answer_idx": "B",
                "metamap_phrases": ["runner", "cramps"],
            }
        ],
        ["Sweat holds salt. Answer: B"],
        ["Answer: A"],
    ),
    "medmcqa": (
        "validation",
        [
            {
                "id": "x1",
                "question": "Which of these is a bone?",
                "opa": "Liver",
                "opb": "Femur",
                "opc": "Lens",
                "opd": "Spleen",
                "cop": 1,
                "choice_type": "single",
                "exp": "It is in the thigh.",
                "subject_name": "Anatomy",
                "topic_name": None,
            }
        ],
        ["**Answer: B. Femur**"],
        ["Answer: D"],
    ),
    "pubmedqa": (
        "test",
        [
            {
                "pubid": 1,
                "question": "Does water boil at lower temperatures on mountains?",
                "context": {
                    "contexts": ["We boiled water at two heights.", "It took 88 and 100 degrees."],
                    "labels": ["A", "B"],
                },
                "long_answer": "It does.",
                "final_decision": "yes",
            }
        ],
        ["Answer: yes"],
        ["Answer: maybe"],
    ),
} | {f"mmlu_{subject}": ("test", [choice_question(2)], ["Answer: C"], ["Answer: B"]) for subject in MMLU}


def write_sets(folder: Path) -> Path:
    """DIR/TASK/SPLIT.jsonl for every set."""
    for task, (split, documents, _, _) in SETS.items():
        (folder / task).mkdir(parents=True)
        (folder / task / f"{split}.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    return folder
