"""What an answer to a multiple choice says around its choice, as patterns: statements, denials, suppositions, marks.

Every pattern takes a number of characters that is bounded, or none of those that another part of it takes, so that time
is linear in the length of what is read.
"""
# ruff: noqa: RUF001 - letters that look alike are what it is about

from __future__ import annotations

import re

NAMED = (
    r"(?:answer|choice|option|alternative|category|label|class|classification|letter|sentiment|topic|language|"
    r"tense)"
)
STATED = re.compile(
    rf"(?:\b(?:{NAMED}(?: (?:of|to|for|in) (?:the|this|your) (?:\w{{1,12}} )?\w{{1,12}}"
    r"| that (?:\w{1,12} ){0,3}\w{1,12}?| i(?:'d| would| will|'ll)? (?:\w{1,12} )?\w{1,12}?)?"
    r"(?:(?: (?:here|is|would be|should be|must be|has to be|was)|'s)\b"
    r"|[\"']?\s?(?:[:=→>⇒]|->|=>)| [-–—] |(?= ?[(\[]))[\s:]*"
    r"|(?:classified|categori[sz]ed|labell?ed) as )"
    rf"|(?:\A|(?<=\n))(?:ans|solution|response|result|verdict|selected|selection|prediction|output|correct|final|"
    rf"pick|"
    r"guess|conclusion)\.?\s?(?:[:=→⇒]|[-–—] |(?<=\.) )[\s]*"
    r"|[\"'](?:ans|solution|response|result|verdict|selected|selection|prediction|output|correct|final|pick|"
    r"selected option|correct option|final answer|value)[\"']\s?[:=]\s?"
    r"|\b(?:my|the) (?:final |best |top )?(?:guess|pick|vote|selection|verdict|conclusion|solution)(?: is|'s|:|"
    r" would be)\s"
    r"|\b(?:correct|right) (?:is|would be)\s"
    r"|(?:\A|(?<=[.!?\n] )|(?<=\n))answer(?= (?-i:[A-Z])(?![\w']))\s"
    r"|\bthe (?:right|correct|best|only) (?:one|letter|thing)(?: here)?(?: is|'s|:)\s"
    r"|<(?:answer|choice|option|final|result|response|solution|letter|label|output|selected|selection|"
    r"ans)(?: \w{1,12})?"
    r"(?: ?(?:=|:) ?|[^<>\n]{0,30}>)\s?)"
    rf"(?:(?:the|most likely|probably|clearly|definitely|{NAMED})\b\s?:?\s?){{0,4}}",
    re.IGNORECASE,
)
"""What says that the answer follows, in English and in data."""

ABROAD = re.compile(
    r"(?:\b(?:respuestas?|réponse|reponse|antwort|lösung|risposta|resposta|antwoord|odpowied[źz]|svaret|svar|"
    r"jawaban(?:nya)?|"
    r"cevap|cevab[ıi]|yan[ıi]t|vastaus|odpov[eě][dď]|válasz|răspunsul|đáp án|câu trả lời|ответ(?:ом)?|відповідь|"
    r"απάντηση)"
    r"(?: (?:correcta|correcte|corretta|correta|certa|esatta|giusta|juste|exacte|finale?|richtige|ist|juiste|"
    r"goede|poprawna|"
    r"prawidłowa|rätta|riktiga|yang|benar|tepat|doğru|đúng|правильный|верный|správná|helyes|corect)){0,2}"
    r"(?: (?:es|est|ist|lautet|wäre|è|é|is|to|jest|är|er|adalah|là|ialah|je|on|a|este|είναι|"
    r"является|будет|это|—|-|–)(?!\w))?"
    r"|答案(?:應該|应该)?(?:是|为|為|選|选)?|(?:正确|正確)?(?:选项|選項)(?:是|为|為)|(?:故|应|應|我|所以|因此|那么)?(?:选择|選擇|選|选)(?!项|項|択)"
    r"|(?:答え|正解|解答|回答)(?:は|：|:|が)?|정답(?:은|:|이)?|답(?:은|:)|정답|الإجابة(?: الصحيحة)?(?: هي)?|"
    r"الجواب(?: الصحيح)?(?: هو)?|"
    r"(?:सही )?(?:उत्तर|जवाब)(?: है)?|คำตอบ(?:คือ|ที่ถูกต้องคือ)?|התשובה(?: הנכונה)?(?: היא)?)"
    r"\s{0,2}[:：=\-–—]?\s{0,2}"
    r"(?:(?:la|el|le|il|lo|(?-i:a|o)(?= \w)|die|der|das|de|het|option|opción|opcion|opzione|opção|alternativa|"
    r"letra|lettre|lettera|"
    r"buchstabe|optie|letter|litera|вариант|буква|варіант|选项|選項|選択肢|보기|विकल्प|seçenek|pilihan|opsi|"
    r"lựa chọn|الخيار|الحرف|ตัวเลือก)(?![^\W_])\s?[:：]?\s{0,2}){0,3}",
    re.IGNORECASE,
)
"""The same in twenty-odd other languages."""

SUPPOSED = re.compile(
    r"\b(?:if|unless|whether|suppose|supposing|assum\w{1,4}|had|were|might|may|could|not|neither|nor|someone|"
    r"somebody|"
    r"many (?:people|students)|tempting|tempted|never|doubt\w{0,3}|den(?:y|ies)|rul(?:e|es|ed|ing) out|unlikely|"
    r"hardly|"
    r"imagine|pretend|can't|cannot|"
    r"(?:friend|teacher|student|students|book|key|others?|people|some|he|she|they|everyone|everybody|colleague|"
    r"classmate|model|textbook|user|you) (?:\w{1,10} )?(?:say|says|said|think|thinks|thought|claim|claims|claimed|"
    r"believe|believes|believed|pick|picks|picked|chose|chooses|choose|answer|answered|wrote|"
    r"writes))\b(?:(?!\bbut\b)[^.!?\n]){0,40}$"
    r"|n't\b[^.!?\n,]{0,40}$|\bsi (?:la|el|le|il)? ?$|\b(?:wenn|falls|se|si|jeśli|если|如果|もし)\b[^.!?\n]{0,30}$|"
    r"(?:如果|假如|もし)[^.!?\n。]{0,12}$",
    re.IGNORECASE,
)
"""What makes of a statement something that is only supposed, asked, denied or said by others."""

_BEHIND = (
    r"(?=[)\]\"'.,;:!]|\s*$|\s*\n| ?[–—-] | \(| (?:because|since|as|here|due|given|based|simply|"
    r"then|for this|on this|in this|by|"
    r"for me|over|too|though|again|final|is my)\b)"
)
SETTLED = re.compile(
    r"(?i:\b(?:so|thus|therefore|hence|finally|ergo|conclusion:?|in conclusion|to conclude|in short|definitely|"
    r"certainly|clearly|obviously|surely|probably|gotta be|got to be|has to be|must be|should be|"
    r"if i (?:had|have) to (?:choose|pick|guess|say|answer)(?: one)?|(?:money|bet)(?: is|'s) on|betting on|"
    r"confident (?:in|about)|"
    r"(?:i|we)(?: (?:\w{1,10} )?(?:will|would|shall|should|can only|have to|must|am going to|am inclined to|"
    r"want to|'m)"
    r"|'ll|'d)?(?: (?:rather|probably|definitely|still|have to|also|just))? ?(?:choose|chose|pick|picked|select|"
    r"selected|go with|go for|"
    r"say|said|answer|conclude|conclude that|settle on|settle for|opt for|vote for|vote|lean towards?|lean to|"
    r"stick with|believe|"
    r"think|guess|take|mark|bet on|get)|(?:let's|let me|let us) (?:go with|go for|pick|choose|say)|going (?:with|"
    r"for)|"
    r"(?:i'm|i am) (?:leaning towards?|going with|choosing|picking|going for|opting for|sticking with)|"
    r"(?:it|this|that|which|there)(?:'s| is| must be| has to be| should be| would be| ought to be|'d be|'ll be|"
    r" will be| can only be)|"
    r"(?:it|this|that) (?:has got to|needs to) be|(?:this |that |which )?(?:leaves|leaving)(?: us with| only)?|"
    r"left with|"
    r"points? to|corresponds? to|matches|gotta go with|select|choose|mark|pick|but|but rather|sino|sondern|maar|"
    r"而是)[,:]? "
    r"(?:(?:that )?(?:it(?:'s| is| must be| should be| has to be) |the answer is |i'd say |i say ))?"
    r"(?:(?:definitely|clearly|probably|again|just|only|most likely|surely|simply|obviously|towards) )?"
    r"(?:(?:the )?(?:correct |right |best |final )?(?:option|choice|answer|letter|number)(?: is)?:? ?)?)"
    rf"[(\[\"']?([A-Z])(?![\w']){_BEHIND}",
    re.MULTILINE,
)
"""A conclusion and its letter."""
CORRECTED = re.compile(
    r"(?i:\b(?:no(?=[,:;.!–—…-])|no(?= wait| actually)|wait|actually|rather|sorry|correction|i mean|i meant|"
    r"make that|on second thought|scratch that|hmm|oops|edit|"
    r"update|nope|strike that|hold on|my mistake|never mind|instead|or rather)"
    r"[,:;.!\s–—…-]{1,4}(?:(?:no|wait|actually|rather|i mean|i meant|make that|make it|it(?:'s|"
    r" is| should be| must be)|i say|"
    r"i meant to say|should be|that(?:'s| is| should be)|the (?:correct |right )?answer (?:is|should be)|option|"
    r"choice)"
    r"[,:;.!\s-]{1,3}){0,3})[(\[\"']?([A-Z])(?![\w'])(?! [a-z])",
    re.MULTILINE,
)
"""A correction and its letter."""
CALLED_RIGHT = re.compile(
    r"(?<![\w'])(?<!\band )(?<!\bor )(?<!\bnor )[(\[]?([A-Z])[)\]]? "
    r"(?i:(?:is|would be|must be|has to be|seems|appears to be|looks|should be)"
    r" (?:(?:clearly|definitely|probably|likely|the|most|only|indeed|therefore|thus|my|a) ){0,3}"
    r"(?:(?:final|best|only|one|correct|right) ){0,2}"
    r"(?:correct|right|answer|best|most appropriate|choice|pick|guess|it|likely|one|what i(?:'d| would) (?:choose|"
    r"pick|say))"
    r"|because|since|it is|for me|fits best|makes the most sense|makes sense|works best|fits|"
    r"(?:is|gets) (?:my|the) (?:final |best )?(?:vote|answer|choice|pick))\b"
    r"(?! (?:in|that|but|only|up to|about|of a|enough|at first|initially|to (?:rule|say))\b)(?!\?)"
)
"""A letter that is said to be right."""
ALONE_AT_END = re.compile(r"(?:[.!?:;…]|\s[-–—]|\n)\s*[(\[\"']?([A-Z])[)\]\"']?[.!]?\s*\Z")
"""A letter that stands alone behind the last sentence."""
QUESTION_AND_ANSWER = re.compile(r"(?:\A|\n)A: ?[(\[]?([A-Z])[)\]]?[.!]?\s*(?=\n|\Z)")
"""`A: B`, where the first is for answer."""
TICKED_BOX = re.compile(r"(?:^|\n)\W{0,4}?(?:\[[xX✓✔*]\]|\([xX✓✔*•]\)|[☑✅✔✓👉➡◉●])\s?[(\[]?([A-Z])(?![\w'])")
IN_A_ROW = re.compile(
    r"(?<![\w'])[(\[]?([A-Z])[)\]]?(?: ?[:.=–-])? ?(?i:(?P<yes>correct|true|right|yes|[✓✔✅☑])|"
    r"(?:incorrect|false|wrong|no|not|[✗✘❌✖☒]))"
    r"(?=\s*(?:[,;.|/)]|$|\n|[(\[]?[A-Z](?![\w'])))"
)
"""Choices and whether each is right, one behind the other on a line."""
SIGNED = re.compile(r"(?:(?P<yes>[✓✔✅☑])|[✗✘❌✖☒]) ?[(\[]?([A-Z])(?![\w'])")
"""The same with signs before the letters."""
SIGNS = "✓✔✅☑✗✘❌✖☒"
BECAUSE = re.compile(r"\A[\W_]*([A-Z])[)\]]?[,;:.]? (?:because|since|as it|as the|as this|as that|for the reason)\b")
REVISED = re.compile(
    r"(?i:\b(?:revise|change|correct|amend|update) (?:it|that|this|my answer|my mind|myself|my choice))"
    r"(?:[:,;]| (?:to|and say|in favou?r of))? ?[(\[\"']?([A-Z])(?![\w'])"
)
RETRACTED = re.compile(
    r"(?:\A|[.!?:\n–—-])\s*(?i:(?:no|wait|hmm|oh|actually|oops|sorry|hold on)\b[,.!;: ]{0,3}){1,3}"
    r"(?i:(?:that|this|it)(?:'s| is| can't be| cannot be| isn't| is not| was)(?: not| n't)? (?:wrong|incorrect|"
    r"right|correct|mistaken|a mistake)|"
    r"i(?:'m| am| was) (?:wrong|mistaken)|scratch that)[^.!?\n]{0,40}[.!?\n]?"
)
"""What takes back all that was said before it."""
VERDICT = re.compile(
    r"^(?:[-+>•] ?)?[(]?([A-Z])[)]?(?: ?[.:)-])?[ ](?:[^\n]{0,80}[ :,;(-])?"
    r"(?i:(?P<yes>correct|true|right|yes|[✓✔✅☑])|(?:incorrect|false|wrong|no|not|[✗✘❌✖☒]))\W{0,3}$",
    re.MULTILINE,
)
"""A choice and whether it is right, on a line."""
FLAGS = re.compile(
    r"[\"']([A-Z])[\"']\s?:\s?(?:(?P<yes>true|1(?:\.0)?|\"?(?:yes|correct|right)\"?)|false|0(?:\.0)?|\"?(?:no|"
    r"wrong|incorrect|false)\"?)(?=\s?[,}\n])",
    re.IGNORECASE,
)
"""The same as JSON."""
LINE = re.compile(r"^(?:[-+>•] ?)?[(\[{\"']?([A-Z])(?![\w'])[)\]}\"']?[.:!)]?([^\n]{0,200})$", re.MULTILINE)
LEAD = re.compile(
    r"[\W_]*(\w)(?![\w'])(?= ?(?:[-–—,;:.!](?!\w)|\n|$|is (?:the |my |clearly |definitely |"
    r"probably |also )?(?:correct|right|"
    r"true|best|answer|final|it\b|most|what|choice|one)|because\b|since\b|as (?:it|the|that|this)\b|for (?:sure|"
    r"me)\b|it is\b|fits\b|works\b))"
)
ARTICLE = re.compile(r"[aA] (?!because|since|as\b|and\b|or\b|for\b|due\b|is (?:correct|right|the)\b)[a-z]")
LETTER_LIST = re.compile(r"(\w)(?!\w|'\w)\s?[)\]]?(?:\s?(?:[,/&]|and\b|or\b){1,2}\s?[(\[]?(\w)(?![\w']))?")

_DENIED = (
    r"(?:wrong|incorrect|false|out\b|eliminated|implausible|ruled out|impossible|unlikely|irrelevant|excluded|not\b|"
    r"no good|neither\b)"
)
_LETTERS = r"[(\[]?(?<![\w'])[A-Z][)\]]?(?:(?:, (?:and |or )?| and | or | & |/)[(\[]?[A-Z][)\]]?){0,8}(?![\w'])"
NEGATED = re.compile(
    r"\b(?i:not|isn't|wasn't|aren't|(?:rather )?than|nor|neither|instead of|can't be|cannot be|couldn't be|"
    r"(?:eliminat|exclud|discard|reject|ignor|disregard|rul)(?:e|es|ed|ing)?(?: out)?|anything but|(?:never|"
    r"wouldn't|would not|don't|do not|won't|will not|didn't) (?:choose|pick|select|say|go with|go for|opt for)|"
    r"avoid|except|unlike|versus|vs\.?|"
    r"no es|n'est pas|pas|nicht|não é|non è|niet|inte|не|nie)\s"
    r"(?:(?:the|la|el|le|die|option|choice|answer|letter|options|choices|answers|both|either)\s){0,2}"
    rf"(?:{_LETTERS}|[(\[]?[A-Za-z0-9][)\]]?(?![\w']))"
    rf"|(?<![\w'])(?!I\b)(?:(?:both|options?|choices?) ){{0,2}}{_LETTERS} "
    r"(?:(?:is|are|was|were|can be|would be|seems?|looks?|sounds?)(?: (?:also|clearly|all|both|definitely|just|"
    r"simply|probably))?"
    rf" {_DENIED}|(?:isn't|aren't|doesn't|don't|can't|cannot|couldn't|won't|wouldn't|does not|do not|"
    rf"would not)\b[^.;,!?\n]{{0,60}})"
)
"""Letters that are said not to be right, and what says so."""
ASKED = re.compile(
    r"(?:\b(?i:is|was|could|would|what about|how about)\b[^.!?\n]{0,40})(?<![\w'])[A-Z](?![\w'])[^.!?\n]{0,20}\?"
)
"""A letter that is asked about."""
NO_CHOICE = re.compile(
    r"\b(?i:consider|considering|look at|looking at|examine|check|evaluate|analy[sz]e|compare|start with|"
    r"begin with|discuss|"
    r"regarding|as for|see|section|appendix|part|figure|table|plan|vitamin|hepatitis|grade|type|group|team|"
    r"exhibit|point|"
    r"schedule|side|mr\.|mrs\.|dr\.) (?i:option |choice |answer )?[(\[]?[A-Z][)\]]?(?![\w'])"
)
"""A letter that names something else, or is only looked at."""
JOINS = frozenset(["the", "my", "final", "correct", "right", "best", "and", "or", "option", "choice", "answer"])
"""Words that may stand between two statements that are one."""
HEDGES = JOINS | frozenset(
    [
        "1",
        "i",
        "we",
        "get",
        "clearly",
        "definitely",
        "certainly",
        "surely",
        "probably",
        "likely",
        "most",
        "only",
        "fits",
        "works",
        "statement",
        "is",
        "it",
        "so",
        "thus",
        "of",
        "these",
        "obviously",
        "must",
        "be",
        "would",
        "guess",
        "think",
        "believe",
        "say",
        "going",
        "go",
        "with",
        "d",
        "ll",
        "s",
        "okay",
        "ok",
        "well",
        "hmm",
        "sure",
        "yes",
        "here",
        "sorry",
        "done",
        "maybe",
        "perhaps",
        "hmm",
        "alternative",
        "please",
        "thanks",
        "thank",
        "you",
        "choose",
        "pick",
        "select",
        "opt",
        "for",
        "as",
    ]
)
"""What stands around a bare letter that is the answer (`Only B fits`), and around no other."""

NUMBERS = {
    word: place
    for place, words in enumerate(
        (
            "one first 1st 1",
            "two second 2nd 2",
            "three third 3rd 3",
            "four fourth 4th 4",
            "five fifth 5th 5",
            "six sixth 6th 6",
            "seven seventh 7th 7",
            "eight eighth 8th 8",
            "nine ninth 9th 9",
            "ten tenth 10th 10",
        )
    )
    for word in words.split()
}
_ORDINAL = "|".join(
    word for word in NUMBERS if word[-2:] in ("st", "nd", "rd", "th") or word in ("first", "second", "third", "fifth")
)
_CARDINAL = "|".join(
    word
    for word in NUMBERS
    if word.isdigit() or (word[-2:] not in ("st", "nd", "rd", "th") and word not in ("first", "second", "third"))
)
NUMBERED = re.compile(
    rf"\b(?:the )?(?P<which>{_ORDINAL}|last) (?:option|choice|alternative|answer|letter|one|of (?:the|"
    rf"these) (?:options|choices|four))\b"
    rf"|(?:\b(?:option|choice|alternative|answer number|option number|choice number|number)\b|\bno\.|"
    rf"#) ?(?:number |no\. ?|#)?(?P<number>{_CARDINAL})\b(?!\.\d)",
    re.IGNORECASE,
)
"""A choice by its place."""
ORDINAL_ALONE = re.compile(
    rf"\b((?:choose|pick|select|is|it's|with|say|for) the )({_ORDINAL}|last)(?=\s*(?:[.!,;)]|$))", re.IGNORECASE
)
"""The same without a noun, behind what chooses."""
STATED_NUMBER = re.compile(
    rf"[(\[]?(?P<number>{_CARDINAL})(?![\w'])[)\]]?(?=\s*(?:[.,;!]?\s*(?:$|\n)|[.,;!)] |[,;] ))", re.IGNORECASE
)
"""The same behind what says that the answer follows."""

NUMBER_SIGN = re.compile(r"(?<![\w#])# ?([1-9])(?!\w)")
BOXED = re.compile(
    r"\\(?:boxed|fbox|framebox)\s?\{(?:\s?\\(?:text\w{0,4}|math\w{1,4})\s?\{)?([^{}\n]{1,80})(?:\}\}?|\Z)"
)
LATEX = re.compile(r"\\(?:text\w{0,4}|math\w{1,4})\s?\{([^{}\n]{0,80})\}")
TABLE = re.compile(
    r"^\|(?=[^\n]*(?:answer|choice|option|selected))[^\n]*\|[ ]*\n\|[-:| ]+\|[ ]*\n\|"
    r"(?:[^\n|]*\|){0,4} ?[(\[]?([A-Z])[)\]]? ?\|[ ]*$",
    re.IGNORECASE | re.MULTILINE,
)
"""A table of one row, whose last cell is a letter."""
BOLD_LINE = re.compile(r"^(?:[-+>] )?\*\*[(\[]?[A-Z][)\].:][^*\n]{0,100}\*\*(?=\s*$)", re.MULTILINE)
LABEL_LINE = re.compile(r"^(?:[-+>] )?[(\[]?[A-Z][)\].:] ", re.MULTILINE)
STRUCK = re.compile(r"~~[^~\n]{1,200}~~|<(?:s|del|strike)>[^<\n]{1,200}</(?:s|del|strike)>")
TAGS = re.compile(r"</?(?:b|i|u|em|strong|p|br|span|code|div|mark|h[1-6]|li|ul|ol|td|tr|tt)(?: [^<>\n]{0,80})?/?>")
XML_VALUE = re.compile(
    r"<\w{1,20}[^<>\n]{0,40}\b(?:id|letter|value|label|option|choice|"
    r"answer)\s?=\s?[\"']([A-Za-z])[\"'][^<>\n]{0,40}>"
)
NOT_BUT = re.compile(
    r"\bnot (?:option |choice |answer |the )?[(\[]?[A-Z][)\]]?(?:[,;]? (?:but|it's|it is)(?: rather| actually|"
    r" instead)?|[,;:]) "
    r"(?:option |choice |answer |the answer is )?(?=[(\[]?[A-Z](?![\w']))"
)
"""`not A but `, before a letter."""
MARKUP = str.maketrans({"*": None, "`": None, "#": None, "$": None, "|": None, "\\": None, "_": " "})

_LOOK = "АВСЕНКМОРТХІЈЅΑΒΕΖΗΙΚΜΝΟΡΤΥΧ"
_LIKE = "ABCEHKMOPTXIJSABEZHIKMNOPTYX"
_ALIKE = {ord(look): like for look, like in zip(_LOOK, _LIKE, strict=True)}
_ALIKE |= {0x1F130 + at: chr(65 + at) for at in range(26)}
_ALIKE |= {0x1F150 + at: chr(65 + at) for at in range(26)}
_ALIKE |= {0x1F170 + at: chr(65 + at) for at in range(26)}
_ALIKE |= {0x1F1E6 + at: chr(65 + at) for at in range(26)}
LOOK_ALIKE = re.compile(
    rf"(?<!\w)[{_LOOK}\U0001F130-\U0001F149\U0001F150-\U0001F169\U0001F170-\U0001F189\U0001F1E6-\U0001F1FF]"
    r"(?!\w)(?! ?[а-яё]{2})"
)
"""A letter of another alphabet, or in a box, that stands alone and looks like a Latin one."""


def latin(text: str) -> str:
    """`text` with single letters that look like Latin ones as these."""
    return LOOK_ALIKE.sub(lambda match: match[0].translate(_ALIKE), text)


NEXT_TO_CJK = re.compile(
    r"(?<![A-Za-z0-9])([A-Z])(?=[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af])|"
    r"(?<=[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af])([A-Z])(?![A-Za-z0-9])"
)
"""A single letter that touches a script without spaces."""
ABROAD_ALONE = re.compile(r"\A\s?[(\[「『]?([A-Z])[)\]」』]? ?(?:です|だ|입니다|이다|예요|。|。 ?)*\Z")
