"""The subject tree that comes with the library: subjects, their areas, and topics; written for it, and taken from no list of others."""

# Six topics have problems that the library draws and solves itself (slmjax/textbook/passages.py): their answers can be checked.
KINDS = {
    "word_problems": "mathematics > arithmetic > word problems",
    "units": "mathematics > measuring > converting units",
    "comparison": "mathematics > numbers > comparing and ordering",
    "sequences": "mathematics > numbers > number sequences",
    "logic": "reasoning > logic > drawing conclusions",
    "definitions": "language > words > using a new word from its definition",
}

TREE = {
    "mathematics": {
        "arithmetic": "word problems; mental addition; long division; fractions; percentages; ratios; rounding and estimating",
        "measuring": "converting units; area and perimeter; volume; reading scales; time and calendars",
        "numbers": "comparing and ordering; number sequences; prime numbers; negative numbers; powers and roots",
        "algebra": "unknowns and equations; inequalities; straight lines; quadratic equations; functions",
        "geometry": "angles; triangles; circles; symmetry; coordinates; similar figures",
        "chance and data": "probability; averages; reading graphs; counting possibilities; samples and surveys",
    },
    "reasoning": {
        "logic": "drawing conclusions; and, or, not; conditions and converses; counterexamples; proof by contradiction",
        "arguments": "claims and evidence; common fallacies; cause and correlation; judging a source",
        "problem solving": "working backwards; making a table; trying small cases; looking for what stays the same",
    },
    "language": {
        "words": "using a new word from its definition; word families; synonyms and shades of meaning; where words come from",
        "grammar": "parts of a sentence; tense; punctuation; joining sentences; active and passive",
        "writing": "clear instructions; summaries; letters; descriptions; arguments on paper",
    },
    "physics": {
        "motion": "speed and acceleration; force and mass; friction; falling bodies; momentum",
        "energy": "kinetic and potential energy; heat and temperature; machines; power",
        "waves": "sound; light and colour; reflection and refraction; lenses",
        "electricity": "charge and current; circuits; magnets; generators and motors",
    },
    "chemistry": {
        "matter": "atoms and elements; the periodic table; states of matter; mixtures and solutions",
        "reactions": "burning; acids and bases; rust; speed of a reaction; conservation of mass",
        "materials": "metals; plastics; glass and ceramics; water",
    },
    "biology": {
        "cells": "parts of a cell; photosynthesis; respiration; cell division; enzymes",
        "the body": "heart and blood; digestion; nerves and senses; bones and muscles; the immune system",
        "heredity": "genes and traits; natural selection; mutation; breeding",
        "ecology": "food webs; habitats; decomposers; populations; invasive species",
    },
    "earth and space": {
        "the earth": "rocks and minerals; volcanoes; earthquakes; erosion; soil",
        "weather": "clouds and rain; wind; seasons; climate; the water cycle",
        "the sky": "the moon's phases; planets; stars; eclipses; gravity and orbits",
    },
    "computing": {
        "programming": "variables; conditions; loops; functions; lists and dictionaries; finding a mistake",
        "algorithms": "searching; sorting; recursion; counting steps; greedy choices",
        "machines": "binary numbers; memory and storage; networks; encryption; files and folders",
    },
    "history": {
        "long ago": "early farming; the first cities; writing systems; trade routes; ancient law",
        "change": "printing; exploration by sea; factories; railways; public health",
        "how we know": "dating finds; reading old documents; oral history; maps of the past",
    },
    "society": {
        "money": "supply and demand; saving and interest; budgets; taxes; insurance",
        "living together": "laws and courts; elections; local government; rights and duties; news and media",
        "work": "division of labour; negotiating; planning a project; safety at work",
    },
    "everyday life": {
        "health": "sleep; a balanced diet; exercise; first aid; hygiene",
        "home": "cooking; repairing things; growing vegetables; saving energy; reading instructions",
        "getting around": "reading a map; timetables; bicycles; crossing the road safely",
    },
    "arts": {
        "music": "rhythm; pitch and scales; instruments; writing a melody",
        "pictures": "perspective; mixing colours; photography; reading a painting",
        "stories": "plot; characters; points of view; fables; poems and metre",
    },
}

# A topic is grown into as many prompts as there are sides from which one can look at it.
ASPECTS = (
    "the main idea and why it is true",
    "how it is used in everyday life",
    "mistakes that learners often make, and how to avoid them",
    "a worked example from beginning to end",
    "how it is connected with something the reader already knows",
    "how one could find it out by oneself, by trying or observing",
)


def topics() -> list[str]:
    """Every topic as "subject > area > topic", in the order of the tree."""
    return [
        f"{subject} > {area} > {topic}"
        for subject, areas in TREE.items()
        for area, listed in areas.items()
        for topic in listed.split("; ")
    ]
