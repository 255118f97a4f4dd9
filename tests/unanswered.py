"""A hundred answers that name no option, written for the tests: whatever letter is read from them is wrong."""

HEDGES = [
    "I cannot tell which of these is right.", "None of the above is correct.", "None of the options is the right answer.",
    "It could be A or B; I cannot decide.", "The answer is (A) or (B), depending on the convention.", "Answer: C or D",
    "Either (E) or (F) would be defensible.", "The closest is (H), but this is not accurate.",
    "The closest option is (D); however, this is not the correct value.", "The nearest value is (G), which is not exact.",
    "I'm not sure whether the answer is (C).", "I do not think the answer is (B).", "If the answer is (A), the bridge would collapse.",
    "Without the figure I can't say if (C) is correct.", "Option A is incorrect.", "The answer is not (D).",
    "A good answer needs more data than we have.", "I believe that is a matter of definition.",
    "A is wrong, and B is wrong too, and I see no better one.", "The question is ambiguous, so no single choice is justified.",
]  # fmt: skip
REFUSALS = [
    "I'm sorry, but I can't help with that.", "As an AI language model, I do not have opinions.", "I cannot access the figure in question.",
    "I apologize, but I am unable to answer this question.", "Please provide the options again.", "I don't have enough information.",
    "I must decline to give legal advice.", "Dear user, a doctor should decide this.", "No.", "Next question, please.", "Yes, certainly!", "...",
]  # fmt: skip
FORMULAS = [
    r"The Rydberg constant $R_{H}$ is $1.097 \times 10^7$.", r"By linearity, $\mathbb{E}[X] = \mu$ and so $\mathbb{E}$ is finite.",
    "We evaluate f(a) and f(b) and compare f(a) with zero.", "Then f(a) is the answer to the first half.",
    r"Thus \mathcal{F} is a sigma-algebra and \mathcal{G} is contained in it.", r"Since $A = \pi r^2$, we get $A = 12.6$",
    r"\[ A = \int_0^1 x \, dx", r"So $P(A)$ is the probability of the event.", r"Hence $P(B)$.", "The result is P(A) = 0.3 and P(B) = 0.4.",
    r"We choose $C \in \mathbb{R}$ such that $f(C) = 0$.", r"Let $H_{0}$ be the null hypothesis; we test $H_{A}$.",
    r"Therefore $\frac{e}{2m} \cdot \mathbf{B}$", r"The number of ways to choose $a$, $b$ and $c$ is 165.", "so a = b + c and therefore b = a - c",
    "E = mc^2, so E is proportional to m.", "V = I * R, therefore I = V / R", r"The matrix $\begin{pmatrix} a & b \\ c & d \end{pmatrix}$",
    r"\boxed{E = mc^2}", r"The answer is $C_{11}^{3}$", r"The answer is $B^2 - 4AC$.", r"Answer: $\mathbf{E} \cdot d\mathbf{A}$", r"x \in (a, b)",
    "The final answer is: A + B + C = 180", "F(a) - F(b) is correct up to sign.", r"\boxed{\hat{H}\psi = E\psi}",
]  # fmt: skip
THINGS = [
    "Iron and lead is the answer.", "Vitamin C is the right choice for scurvy patients.", "Scurvy is due to a lack of vitamin C.",
    "The liver is inflamed by hepatitis B.", "E. coli is a bacterium that lives in the gut.", "C. elegans is a nematode.",
    "The answer is vitamin D.", "The answer is H2O.", "The answer is C-reactive protein.", "It is an A-type star.",
    "Grade A is best for frying.", "J. S. Bach wrote it in D minor.", "The enthalpy (H) falls while the entropy (S) rises.",
    "The current (I) doubles.", "The magnetic field (B) points north.", "Carbon (C) has four bonds.", "T cells and B cells are lymphocytes.",
    "The Great Gatsby (F. Scott Fitzgerald) is a novel.", "The answer lies in Plan B, as always.", "He got an A in the exam.",
]  # fmt: skip
NUMERALS = [
    "Statement (ii) is true.", "Statement (i) is true.", "Statement I is true and statement II is false.", "Only statement (i) is correct.",
    "Statements I and II are correct.", "i) First we compute the mean.", "(i) and (iii) hold.", "Premise (a) is correct, by assumption.",
    "Case (b) is the right one to begin with.", "Equation (c) is correct only for ideal gases.",
]  # fmt: skip
LISTS = [
    "A. ice\nB. fire", "(A) melts, (B) burns, (C) sinks", "A) ice: no\nB) fire: no", "Options:\nA. ice\nB. fire\nC. iron",
    "Let us go through the options:\n\nA. Ice: it melts at 0 degrees.\nB. Fire: it", "A\nB\nC",
]  # fmt: skip
PARTIAL = [
    "The answer is", "The correct answer is (", "Therefore, the answer", "So we can conclude that option",
    "Question: Which one melts? Options: A. ice B. fire", "Step 1: write down the equation. Step 2: solve",
]  # fmt: skip

UNANSWERED = [*HEDGES, *REFUSALS, *FORMULAS, *THINGS, *NUMERALS, *LISTS, *PARTIAL]
