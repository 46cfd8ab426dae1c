"""What the embedded teacher says about each kind of problem: ideas, methods, mistakes and checks, without numbers, names or examples."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Lesson:
    """Sentences about one kind of problem, any of which can stand alone; ideas are in an order that makes sense."""

    titles: tuple[str, ...]
    ideas: tuple[str, ...]
    methods: tuple[str, ...]
    mistakes: tuple[str, ...]
    checks: tuple[str, ...]


GREETINGS = {
    "children": (
        "Let us find out something together.",
        "You can do this with a pencil and a little time.",
        "This is like a small puzzle.",
    ),
    "students": (
        "You have met the basics of this before.",
        "This comes up again and again in school.",
        "Have paper ready.",
    ),
    "undergraduates": (
        "We state each step explicitly.",
        "The aim is a method that can be justified.",
        "Definitions first, then computation.",
    ),
    "adults": (
        "This is useful far from any classroom.",
        "No training is needed to follow.",
        "You may have done this today unnoticed.",
    ),
}
CLOSINGS = (
    "If a step is not clear, go back to the first example and say each line aloud.",
    "Cover the working with your hand and solve the problems again.",
    "What matters is not the answer alone but that every step can be explained.",
    "Make up a problem of this sort for a friend, and solve it yourself first.",
    "With practice the steps become one thought.",
)
LESSONS = {
    "word_problems": Lesson(
        (
            "Problems told in words",
            "From a story to a sum",
            "Counting what there is in the end",
            "Adding, losing and sharing in stories",
        ),
        (
            "A story problem tells what someone has, what changes, and asks what is left in the end.",
            "Words such as gets, makes and puts in tell us to add, and words such as loses and takes out tell us to subtract.",
            "Bags or days with the same number in each tell us to multiply.",
            "The order of the story is the order of the sums.",
            "The names and the things do not change the sum, but the answer is about them.",
        ),
        (
            "Write down what there is at first, then change it one event at a time.",
            "Read the story once for what happens and once for the numbers, and then write one sum for each event.",
            "Find the question first, because it says which number is wanted.",
        ),
        (
            "A common mistake is to add every number that appears; what is lost must be taken away.",
            "Many learners stop after the first sum, although the story goes on.",
            "It is easy to forget that each bag holds the same number, so that one must multiply before adding.",
        ),
        (
            "Go back through the story from the end, and see whether you come to the first number.",
            "Ask whether the answer is larger or smaller than at the start, and whether it should be.",
            "Put the answer into the story and read it once more.",
        ),
    ),
    "units": Lesson(
        (
            "Changing units",
            "Large units and small units",
            "The same length in other words",
            "How units fit into each other",
        ),
        (
            "A measure is a number together with a unit, and the same measure can be told in several units.",
            "One large unit is made of a fixed number of small ones.",
            "Going to a smaller unit gives a larger number, since more of them are needed.",
            "Going to a larger unit gives a smaller number.",
            "Two measures can be added only after both are told in the same unit.",
        ),
        (
            "Find out how many small units make a large one, and then multiply or divide by that number.",
            "Change one part into the unit of the other, and then add.",
            "Look at which unit the question asks for before you compute.",
        ),
        (
            "A common mistake is to add the two numbers although their units differ.",
            "Some multiply where they should divide; ask first whether the new number must be larger.",
            "The part that is already in the right unit is easily forgotten at the end.",
        ),
        (
            "Change the answer back and see whether the measure is the same.",
            "Think of the real thing, and ask whether the answer could be true of it.",
            "A smaller unit must come with a larger number; see whether it does.",
        ),
    ),
    "comparison": Lesson(
        (
            "More, fewer and in between",
            "Putting numbers in order",
            "Who has the most",
            "Comparing numbers",
        ),
        (
            "To compare two numbers, look at the tens first, and at the units only if the tens are equal.",
            "Several numbers are put in order by finding the largest or the smallest again and again.",
            "The difference of two numbers says how many more one is than the other.",
            "A question about who has the most asks for a name, not for a number.",
            "Fewest and smallest are found like most and largest, from the other end.",
        ),
        (
            "Write the numbers in a row with their owners, put them in order, and then read the answer off.",
            "Compare the tens of the numbers, since they decide as long as they differ.",
            "To find how many more, count on from the smaller number to the larger.",
        ),
        (
            "A common mistake is to answer with the number where the owner was asked for.",
            "Most and fewest are mixed up easily; read the question again after you have put the numbers in order.",
            "The number that is told first is not always the largest.",
        ),
        (
            "Each number in the row must be on the right side of its neighbours.",
            "Add the difference to the smaller number, and you must get the larger one.",
            "No number may be lost when they are put in order, so count them.",
        ),
    ),
    "sequences": Lesson(
        (
            "Finding what comes next",
            "Lists of numbers with a rule",
            "Sequences",
            "Finding the rule",
        ),
        (
            "A sequence is a list of numbers that follows a rule.",
            "The rule shows in how each number comes from the one before.",
            "Where the same amount is added each time, the differences of neighbours are equal.",
            "In other lists each number is doubled, or two numbers take turns.",
            "Once the rule is known, the list can be continued as far as one likes.",
        ),
        (
            "Take the difference of the first two numbers, see whether the next two have the same, and use it once more.",
            "Say the rule in words before you compute the next number.",
            "Start from the first number and apply the rule as often as the problem says.",
        ),
        (
            "A common mistake is to look at the first two numbers only, although a rule must fit all of them.",
            "In a list that goes down the same amount is taken away, not added.",
            "When doubling up to a bound, some stop one step too early.",
        ),
        (
            "Apply the rule backwards from the answer, and the numbers that were given must come back.",
            "See whether the new number continues the way the list went before, up or down.",
            "Check the rule on every number that is given.",
        ),
    ),
    "logic": Lesson(
        (
            "What follows from what",
            "Drawing conclusions",
            "Facts, rules and what they tell us",
            "Careful thinking",
        ),
        (
            "A conclusion follows if it must be true whenever the facts are true.",
            "A rule about all members of a group holds for each of them.",
            "A rule about no members of a group excludes each of them.",
            "If one thing is more than a second, and the second more than a third, then the first is more than the third.",
            "With the word and, both parts must hold; with the word or, one of them is enough.",
        ),
        (
            "List what is known about the person in the question, and then see which rule speaks about that.",
            "Go from the general rule to the single case, one fact at a time.",
            "Put those who are compared in a row, and then read off the end of the row.",
        ),
        (
            "A common mistake is to use what one believes about the world where only the facts of the problem count.",
            "The words and and or are mixed up easily, and so are all and no.",
            "The order in which facts are told says nothing about who is first.",
        ),
        (
            "Suppose that the answer were the other one, and see which fact it would break.",
            "Name for each step the fact that it uses.",
            "Try to draw a picture in which all facts are true, and see whether the answer holds in it.",
        ),
    ),
    "definitions": Lesson(
        (
            "New words and how to use them",
            "Learning a word from its meaning",
            "Made-up words",
            "Words that we define ourselves",
        ),
        (
            "A definition says what a word means by words that we know already.",
            "Once a word is defined, it can be used like any other.",
            "A made-up word shows whether we follow the definition, since nobody can know it from before.",
            "A word may stand for a thing, for something that one does, or for what things are like.",
            "Wherever the new word stands, its meaning can be put in its place.",
        ),
        (
            "Put the meaning in the place of the new word, and read the sentence again.",
            "Ask first whether the word names a thing, an action or a quality.",
            "Copy the definition, and then replace each part of it by what the problem gives.",
        ),
        (
            "A common mistake is to guess the meaning from the sound of the word instead of its definition.",
            "Some forget a part of the definition, such as the number in it.",
            "A word that means a quality can be false of a thing; compare before you answer.",
        ),
        (
            "Read the answer with the meaning in place of the word, and ask whether it makes sense.",
            "Use the new word in a sentence of your own.",
            "See whether every part of the definition was used.",
        ),
    ),
}
