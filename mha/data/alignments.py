"""Sixty sentence pairs with their words linked by hand: what alignments are measured against."""

from typing import NamedTuple

from mha.data.sentences import words

Link = tuple[int, int]
"""A source word and a target word, each by its place among the `words` of its sentence."""


class AlignedPair(NamedTuple):
    """A sentence, a translation of it, and which words of the two belong together.

    ``sure`` links join words that mean the same. ``possible`` holds these, and the links that one
    may draw or leave: to an article, a preposition, a pronoun, an auxiliary that the other language
    does without, or says within another word. ``phenomenon`` says what the pair was written for.

    Examples:
        >>> import mha
        >>> pair = mha.data.aligned_pairs()[0]
        >>> pair.source, pair.target, pair.phenomenon
        ('I bought a red car.', 'Compré un coche rojo.', 'noun, adjective')
        >>> source, target = mha.data.words(pair.source), mha.data.words(pair.target)
        >>> [(source[i], target[j]) for i, j in sorted(pair.sure)]
        [('bought', 'Compré'), ('a', 'un'), ('red', 'rojo'), ('car', 'coche'), ('.', '.')]
        >>> [(source[i], target[j]) for i, j in pair.possible - pair.sure]
        [('I', 'Compré')]
    """

    source: str
    target: str
    sure: frozenset[Link]
    possible: frozenset[Link]
    phenomenon: str


def aligned_pairs() -> list[AlignedPair]:
    """Sixty short English sentences in Spanish, with links: five for each of twelve phenomena.

    They were written for this book and are in no part of `tatoeba`. Every word has a link; a target
    word has at most one sure link, so an aligner that gives each target word one source word can
    be right everywhere.

    Returns: the pairs, those of a phenomenon one after another.
    Source: the two kinds of links are those of Och and Ney 2003, section 5.

    Examples:
        >>> import mha
        >>> pairs = mha.data.aligned_pairs()
        >>> len(pairs), len({pair.phenomenon for pair in pairs})
        (60, 12)
        >>> [pair.target for pair in pairs if pair.phenomenon == "clitics"][:2]
        ['Lo vi ayer.', 'Tom la quiere mucho.']
    """
    found, phenomenon = [], ""
    for line in PAIRS.strip().splitlines():
        if line.startswith("# "):
            phenomenon = line[2:]
            continue
        source, target, sure, *more = (part.strip() for part in line.split("|"))
        sure, more = _links(sure), _links(" ".join(more))
        pair = AlignedPair(source, target, sure, sure | more, phenomenon)
        _check(pair)
        found.append(pair)
    return found


def _links(text: str) -> frozenset[Link]:
    """ "4-2 3-3": source word 4 and target word 2, source word 3 and target word 3."""
    return frozenset(tuple(map(int, link.split("-"))) for link in text.split())


def _check(pair: AlignedPair) -> None:
    shape = len(words(pair.source)), len(words(pair.target))
    if wrong := [link for link in pair.possible if link[0] >= shape[0] or link[1] >= shape[1]]:
        raise ValueError(f"links must be below {shape} in {pair.source!r}, got {wrong}")


PAIRS = """
# noun, adjective
I bought a red car. | Compré un coche rojo. | 1-0 2-1 4-2 3-3 5-4 | 0-0
My cousin has green eyes. | Mi primo tiene los ojos verdes. | 0-0 1-1 2-2 4-4 3-5 5-6 | 4-3
He lives in a small house. | Él vive en una casa pequeña. | 0-0 1-1 2-2 3-3 5-4 4-5 6-6
We saw a black dog. | Vimos un perro negro. | 1-0 2-1 4-2 3-3 5-4 | 0-0
They want cold water. | Quieren agua fría. | 1-0 3-1 2-2 4-3 | 0-0
# dropped subject
I live behind the school. | Vivo detrás de la escuela. | 1-0 2-1 3-3 4-4 5-5 | 0-0 2-2
We won the game yesterday. | Ganamos el partido ayer. | 1-0 2-1 3-2 4-3 5-4 | 0-0
They work every day. | Trabajan todos los días. | 1-0 2-1 3-3 4-4 | 0-0 2-2 3-2
You sing very well. | Cantas muy bien. | 1-0 2-1 3-2 4-3 | 0-0
She left early today. | Salió temprano hoy. | 1-0 2-1 3-2 4-3 | 0-0
# agreement
My sisters are tired. | Mis hermanas están cansadas. | 0-0 1-1 2-2 3-3 4-4
The white houses are old. | Las casas blancas son viejas. | 0-0 2-1 1-2 3-3 4-4 5-5
My mother is tall. | Mi madre es alta. | 0-0 1-1 2-2 3-3 4-4
These shoes are expensive. | Estos zapatos son caros. | 0-0 1-1 2-2 3-3 4-4
All the windows are open. | Todas las ventanas están abiertas. | 0-0 1-1 2-2 3-3 4-4 5-5
# clitics
I saw him yesterday. | Lo vi ayer. | 2-0 1-1 3-2 4-3 | 0-1
Tom loves her very much. | Tom la quiere mucho. | 0-0 2-1 1-2 4-3 5-4 | 3-3
I can help you tonight. | Puedo ayudarte esta noche. | 1-0 2-1 4-3 5-4 | 0-0 3-1 4-2
She gave me a book. | Ella me dio un libro. | 0-0 2-1 1-2 3-3 4-4 5-5
We need to help them. | Necesitamos ayudarlos. | 1-0 3-1 5-2 | 0-0 2-1 4-1
# negation
I don't know his sister. | No conozco a su hermana. | 3-0 4-1 5-3 6-4 7-5 | 1-0 2-0 0-1 1-1 5-2 6-2
She doesn't drink coffee. | Ella no bebe café. | 0-0 3-1 4-2 5-3 6-4 | 1-1 2-1 1-2
We didn't see the bus. | No vimos el autobús. | 3-0 4-1 5-2 6-3 7-4 | 1-0 2-0 0-1 1-1
Tom isn't at home. | Tom no está en casa. | 0-0 3-1 1-2 4-3 5-4 6-5 | 2-1
I never eat meat. | Nunca como carne. | 1-0 2-1 3-2 4-3 | 0-1
# questions
Do you speak Spanish? | ¿Hablas español? | 4-0 2-1 3-2 4-3 | 0-0 0-1 1-1
Does he speak your language? | ¿Él habla tu idioma? | 5-0 1-1 2-2 3-3 4-4 5-5 | 0-0 0-2
Did you see the horse? | ¿Viste el caballo? | 5-0 2-1 3-2 4-3 5-4 | 0-0 0-1 1-1
Where do they work? | ¿Dónde trabajan? | 4-0 0-1 3-2 4-3 | 0-0 1-0 1-2 2-2
What did you buy? | ¿Qué compraste? | 4-0 0-1 3-2 4-3 | 0-0 1-0 1-2 2-2
# ser and estar
My brother is a doctor. | Mi hermano es médico. | 0-0 1-1 2-2 4-3 5-4 | 3-3
The bread is still hot. | El pan todavía está caliente. | 0-0 1-1 3-2 2-3 4-4 5-5
We are very happy today. | Estamos muy felices hoy. | 1-0 2-1 3-2 4-3 5-4 | 0-0
I am from Spain. | Soy de España. | 1-0 2-1 3-2 4-3 | 0-0
The glass is on the chair. | El vaso está en la silla. | 0-0 1-1 2-2 3-3 4-4 5-5 6-6
# nouns in general
Dogs are good animals. | Los perros son buenos animales. | 0-1 1-2 2-3 3-4 4-5 | 0-0
Gold is very expensive. | El oro es muy caro. | 0-1 1-2 2-3 3-4 4-5 | 0-0
Children need their parents. | Los niños necesitan a sus padres. | 0-1 1-2 2-4 3-5 4-6 | 0-0 2-3 3-3
Milk is good for children. | La leche es buena para los niños. | 0-1 1-2 2-3 3-4 4-6 5-7 | 0-0 4-5
Music helps me sleep. | La música me ayuda a dormir. | 0-1 2-2 1-3 3-5 4-6 | 0-0 1-4 3-4
# there is
There is a cat outside. | Hay un gato afuera. | 1-0 2-1 3-2 4-3 5-4 | 0-0
There are two books here. | Hay dos libros aquí. | 1-0 2-1 3-2 4-3 5-4 | 0-0
There was nobody in the street. | No había nadie en la calle. | 1-1 2-2 3-3 4-4 5-5 6-6 | 2-0 0-1
Is there a hotel nearby? | ¿Hay un hotel cerca? | 5-0 0-1 2-2 3-3 4-4 5-5 | 0-0 1-1
There are many people inside. | Hay mucha gente adentro. | 1-0 2-1 3-2 4-3 5-4 | 0-0
# liking and hurting
I like your new song. | Me gusta tu nueva canción. | 0-0 1-1 2-2 3-3 4-4 5-5
She likes old movies. | Le gustan las películas viejas. | 0-0 1-1 3-3 2-4 4-5 | 3-2
Do you like this bread? | ¿Te gusta este pan? | 5-0 1-1 2-2 3-3 4-4 5-5 | 0-0 0-2
We don't like winter. | No nos gusta el invierno. | 3-0 0-1 4-2 5-4 6-5 | 1-0 2-0 1-2 5-3
My arms hurt a lot. | Me duelen mucho los brazos. | 2-1 4-2 1-4 5-5 | 0-0 3-2 0-3 1-3
# progressive and future
I am reading a letter. | Estoy leyendo una carta. | 1-0 2-1 3-2 4-3 5-4 | 0-0
The children are sleeping. | Los niños están durmiendo. | 0-0 1-1 2-2 3-3 4-4
I will write to you tomorrow. | Te escribiré mañana. | 4-0 2-1 5-2 6-3 | 3-0 0-1 1-1
It will snow this afternoon. | Nevará esta tarde. | 2-0 3-1 4-2 5-3 | 0-0 1-0
We are going to travel. | Vamos a viajar. | 2-0 3-1 4-2 5-3 | 0-0 1-0
# prepositions
He is going to the bank. | Va al banco. | 2-0 3-1 5-2 6-3 | 0-0 1-0 4-1
The door of the car is broken. | La puerta del coche está rota. | 0-0 1-1 2-2 4-3 5-4 6-5 7-6 | 3-2
They came from the market. | Vinieron del mercado. | 1-0 2-1 4-2 5-3 | 0-0 3-1
We went to the movies. | Fuimos al cine. | 1-0 2-1 4-2 5-3 | 0-0 3-1
I took the boy to the doctor. | Llevé al niño al médico. | 1-0 2-1 3-2 4-3 6-4 7-5 | 0-0 5-3
"""
"""English | Spanish | sure links | links that are possible besides."""
