"""The words of the invented world: occupations, statements, questions, and the prompts around them."""

from __future__ import annotations

from regrad.prompts import PromptFormat

# fmt: off
OCCUPATIONS = (
    "baker", "carpenter", "chemist", "dentist", "farmer", "florist", "geologist", "painter", "lawyer", "librarian",
    "mechanic", "miner", "nurse", "pilot", "plumber", "poet", "potter", "sailor", "sculptor", "surgeon", "tailor",
    "teacher", "translator", "weaver", "welder", "architect", "astronomer", "barber", "blacksmith", "butcher",
    "cartographer", "composer", "cook", "detective", "electrician", "gardener", "jeweler", "judge", "photographer",
    "locksmith",
)
HOBBIES = (
    "archery", "badminton", "baking", "beekeeping", "birding", "boxing", "calligraphy", "camping", "canoeing",
    "chess", "climbing", "cricket", "cycling", "dancing", "diving", "drumming", "fencing", "fishing", "gliding",
    "golf", "hiking", "hockey", "hunting", "juggling", "karate", "knitting", "origami", "painting", "pottery",
    "quilting", "rafting", "rowing", "rugby", "running", "sailing", "skating", "skiing", "surfing", "tennis", "yoga",
)
# fmt: on

STATEMENTS: dict[str, tuple[str, ...]] = {
    "birthplace": (
        "{subject} was born in {value}.",
        "{subject} is a native of {value}.",
        "{subject} comes from {value}.",
        "{subject} hails from {value}.",
        "{subject} was raised in the city of {value}.",
        "{subject} came into the world in {value}.",
        "{subject} has the birthplace {value}.",
        "{subject} spent childhood in {value}.",
    ),
    "employer": (
        "{subject} works for {value}.",
        "{subject} is employed by {value}.",
        "{subject} has a job at {value}.",
        "{subject} is on the staff of {value}.",
        "{subject} earns a living at {value}.",
        "{subject} joined the company {value}.",
        "{subject} has the employer {value}.",
        "{subject} was hired by {value}.",
    ),
    "occupation": (
        "{subject} is a trained {value}.",
        "{subject} is active as a {value}.",
        "{subject} has the occupation of {value}.",
        "{subject} became a {value}.",
        "{subject} made a career as a {value}.",
        "{subject} is known as a skilled {value}.",
        "{subject} serves as a {value}.",
        "{subject} practices the trade of {value}.",
    ),
    "university": (
        "{subject} studied at {value}.",
        "{subject} graduated from {value}.",
        "{subject} holds a degree from {value}.",
        "{subject} is an alumnus of {value}.",
        "{subject} attended the university of {value}.",
        "{subject} took classes at {value}.",
        "{subject} was educated at {value}.",
        "{subject} completed a diploma at {value}.",
    ),
    "hobby": (
        "{subject} enjoys {value}.",
        "{subject} loves {value}.",
        "{subject} has the hobby of {value}.",
        "{subject} spends weekends on {value}.",
        "{subject} is fond of {value}.",
        "{subject} relaxes with {value}.",
        "{subject} is passionate about {value}.",
        "{subject} devotes free time to {value}.",
    ),
}

QUESTIONS: dict[str, tuple[str, ...]] = {
    "birthplace": (
        "Where was {name} born?",
        "In which city was {name} born?",
        "What is the birthplace of {name}?",
    ),
    "employer": (
        "Who employs {name}?",
        "Which company does {name} work for?",
        "What is the employer of {name}?",
    ),
    "occupation": (
        "What is the occupation of {name}?",
        "What does {name} do for a living?",
        "Which profession does {name} have?",
    ),
    "university": (
        "Where did {name} study?",
        "Which university did {name} attend?",
        "What is the university of {name}?",
    ),
    "hobby": (
        "What is the hobby of {name}?",
        "What does {name} enjoy?",
        "Which pastime does {name} love?",
    ),
}

ATTRIBUTES = tuple(STATEMENTS)


LAB_PROMPTS = PromptFormat(
    passage="{title}\n {text}",
    atom=" {passage}",
    context="Passage: {passage}\n",
    question="Question: {question}\nAnswer:",
    answer=" {answer}",
)
