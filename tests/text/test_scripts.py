"""Text of many scripts from the letters to the masks: the same four sentences in each, with figures that can be read.

The sun rises early. The children walk to school. Is the water cold? My sister reads a book.
"""

import random
import unicodedata

import numpy as np
import pytest
from corpus_helpers import build

from hfbert_scratch.corpus.masking import MaskingConfig, PretrainingCollator, num_predictions
from hfbert_scratch.corpus.segment_pairs import SegmentPairSampler
from hfbert_scratch.model.kernels_hfbert import IGNORED_LABEL
from hfbert_scratch.text.sentences import split_sentences
from hfbert_scratch.text.tokenizer import TextLosses, train_wordpiece
from hfbert_scratch.utils.errors import InputError


# Script: the percentage of letters from which an uncased vocabulary strips a mark, and the sentences (between which is
# a blank, but for Chinese, Japanese and Tibetan).
SCRIPTS = {
    "Latin": (0, "The sun rises early.|The children walk to school.|Is the water cold?|My sister reads a book."),
    "Vietnamese": (30, "Mặt trời mọc sớm.|Trẻ em đi bộ đến trường.|Nước có lạnh không?|Chị tôi đọc một cuốn sách."),
    "Greek": (
        14,
        "Ο ήλιος ανατέλλει νωρίς.|Τα παιδιά πηγαίνουν στο σχολείο.|Είναι κρύο το νερό;|Η αδελφή μου διαβάζει βιβλίο.",
    ),
    "Cyrillic": (2, "Солнце встаёт рано.|Дети идут в школу.|Вода холодная?|Моя сестра читает книгу."),
    "Armenian": (0, "Արևը ծագում է շուտ։|Երեխաները գնում են դպրոց։|Ջուրը սառն է։|Քույրս գիրք է կարդում։"),
    "Georgian": (0, "მზე ადრე ამოდის.|ბავშვები სკოლაში მიდიან.|წყალი ცივია?|ჩემი და წიგნს კითხულობს."),
    "Hebrew": (0, "השמש זורחת מוקדם.|הילדים הולכים לבית הספר.|האם המים קרים?|אחותי קוראת ספר."),
    "Arabic": (7, "تشرق الشمس مبكرا.|يذهب الأطفال إلى المدرسة.|هل الماء بارد؟|أختي تقرأ كتابا."),
    "Urdu": (0, "سورج جلدی نکلتا ہے۔|بچے اسکول جاتے ہیں۔|کیا پانی ٹھنڈا ہے؟|میری بہن کتاب پڑھتی ہے۔"),
    "Devanagari": (24, "सूरज जल्दी निकलता है।|बच्चे स्कूल जाते हैं।|क्या पानी ठंडा है?|मेरी बहन किताब पढ़ती है।"),
    "Bengali": (16, "সূর্য ভোরে ওঠে।|শিশুরা স্কুলে যায়।|জল কি ঠান্ডা?|আমার বোন বই পড়ে।"),
    "Gurmukhi": (22, "ਸੂਰਜ ਜਲਦੀ ਚੜ੍ਹਦਾ ਹੈ।|ਬੱਚੇ ਸਕੂਲ ਜਾਂਦੇ ਹਨ।|ਕੀ ਪਾਣੀ ਠੰਡਾ ਹੈ?|ਮੇਰੀ ਭੈਣ ਕਿਤਾਬ ਪੜ੍ਹਦੀ ਹੈ।"),
    "Gujarati": (26, "સૂરજ વહેલો ઊગે છે.|બાળકો શાળાએ જાય છે.|શું પાણી ઠંડું છે?|મારી બહેન પુસ્તક વાંચે છે."),
    "Tamil": (
        21,
        "சூரியன் சீக்கிரம் உதிக்கிறது.|குழந்தைகள் பள்ளிக்குச் செல்கிறார்கள்.|தண்ணீர் குளிராக இருக்கிறதா?|என் அக்கா புத்தகம் படிக்கிறாள்.",
    ),
    "Telugu": (
        28,
        "సూర్యుడు త్వరగా ఉదయిస్తాడు.|పిల్లలు బడికి వెళ్తారు.|నీళ్ళు చల్లగా ఉన్నాయా?|నా అక్క పుస్తకం చదువుతుంది.",
    ),
    "Kannada": (27, "ಸೂರ್ಯ ಬೇಗ ಉದಯಿಸುತ್ತಾನೆ.|ಮಕ್ಕಳು ಶಾಲೆಗೆ ಹೋಗುತ್ತಾರೆ.|ನೀರು ತಣ್ಣಗಿದೆಯೇ?|ನನ್ನ ಅಕ್ಕ ಪುಸ್ತಕ ಓದುತ್ತಾಳೆ."),
    "Malayalam": (
        27,
        "സൂര്യൻ നേരത്തെ ഉദിക്കുന്നു.|കുട്ടികൾ സ്കൂളിൽ പോകുന്നു.|വെള്ളം തണുത്തതാണോ?|എന്റെ ചേച്ചി പുസ്തകം വായിക്കുന്നു.",
    ),
    "Sinhala": (17, "ඉර වේලාසනින් පායනවා.|ළමයි පාසලට යනවා.|වතුර සීතලද?|මගේ අක්කා පොතක් කියවනවා."),
    "Thai": (24, "ดวงอาทิตย์ขึ้นแต่เช้า|เด็กๆเดินไปโรงเรียน|น้ำเย็นหรือเปล่า|พี่สาวของฉันอ่านหนังสือ"),
    "Lao": (25, "ຕາເວັນຂຶ້ນແຕ່ເຊົ້າ|ເດັກນ້ອຍຍ່າງໄປໂຮງຮຽນ|ນ້ຳໃນແມ່ນ້ຳເຢັນຫຼາຍ|ເອື້ອຍຂອງຂ້ອຍອ່ານປຶ້ມ"),
    "Khmer": (23, "ព្រះអាទិត្យរះពីព្រលឹម។|ក្មេងៗទៅសាលារៀន។|ទឹកត្រជាក់ណាស់។|បងស្រីខ្ញុំអានសៀវភៅ។"),
    "Myanmar": (21, "နေက စောစော ထွက်သည်။|ကလေးများ ကျောင်းသွားကြသည်။|ရေက အေးသည်။|ကျွန်တော့်အစ်မ စာအုပ်ဖတ်သည်။"),
    "Tibetan": (40, "ཉི་མ་སྔ་པོར་ཤར།|ཕྲུ་གུ་ཚོ་སློབ་གྲྭར་འགྲོ།|ཆུ་འདི་གྲང་མོ་རེད།|ངའི་ཨ་ཅག་དེབ་ཀློག།"),
    "Ethiopic": (0, "ፀሐይ ማለዳ ትወጣለች።|ልጆች ወደ ትምህርት ቤት ይሄዳሉ።|ውሃው ቀዝቃዛ ነው፧|እህቴ መጽሐፍ ታነባለች።"),
    "Hangul": (0, "해가 일찍 뜬다.|아이들이 학교에 걸어간다.|물이 차가운가?|우리 언니는 책을 읽는다."),
    "Chinese": (0, "太阳很早升起。|孩子们走路去学校。|水冷吗？|我姐姐在看书。"),
    "Japanese": (6, "太陽は早く昇る。|子供たちは学校へ歩いて行く。|水は冷たいですか？|姉は本を読んでいます。"),
}


def paragraphs(script: str) -> list[str]:
    """40 different documents of 12 to 30 of the sentences, in one line."""
    rng = random.Random(script)
    sentences = SCRIPTS[script][1].split("|")
    joined = "" if script in ("Chinese", "Japanese", "Tibetan") else " "
    found: dict[str, None] = {}
    while len(found) < 40:
        found[joined.join(rng.choices(sentences, k=rng.randint(12, 30)))] = None
    return list(found)


def letters(text: str) -> str:
    return "".join(text.split())


def vocabulary_size(texts: list[str]) -> int:
    """Room for the characters and a dozen longer pieces, so that words have several."""
    return 2 * len(set(letters("".join(texts)))) + 17


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_goes_all_the_way(script, tmp_path):
    stripped, sentences = SCRIPTS[script][0], SCRIPTS[script][1].split("|")
    texts = paragraphs(script)
    size = vocabulary_size(texts)
    found = [sentence for text in texts for sentence in split_sentences(text)]
    assert set(found) == set(sentences)
    assert letters("".join(found)) == letters("".join(texts))

    # Uncased vocabularies strip marks: how many is said. Others keep every letter.
    losses = TextLosses()
    train_wordpiece(texts, vocab_size=size, losses=losses)
    percent = 100 * losses.stripped.total() / losses.letters
    assert round(percent) == stripped
    assert losses.in_long_words == 0
    for options in ({"lowercase": False}, {"strip_accents": False}):
        tokenizer = train_wordpiece(texts, vocab_size=size, **options)
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            kept = "".join(token.removeprefix("##") for token in tokenizer.convert_ids_to_tokens(ids))
            assert kept == letters(text if "lowercase" in options else text.lower())

    tokenizer = train_wordpiece(texts, vocab_size=size, lowercase=False)
    corpus = build(tmp_path, texts, tokenizer, validation_share=0.1, max_seq_length=128)
    splits = corpus.manifest["splits"]
    assert sum(split["sentences"] for split in splits.values()) == len(found)
    assert all(split["unk_rate"] == 0 for split in splits.values())
    assert corpus.manifest["warnings"] == []
    assert (corpus.whole_word_note(tokenizer) is not None) == (script in ("Chinese", "Japanese"))

    pairs = SegmentPairSampler(corpus.split("train"), max_seq_length=128, seed=0)
    rows = [pairs.sample_buffer(epoch, 0) for epoch in range(8)]
    not_next = np.concatenate([part.next_sentence_label for part in rows]).mean()
    assert 0.42 < not_next < 0.58
    batch = pairs.to_batch(rows[0]) | {"epoch": rows[0].epoch, "index": rows[0].index}
    masked = PretrainingCollator(tokenizer, MaskingConfig(20), seed=0)(batch)
    predicted = masked["labels"] != IGNORED_LABEL
    assert (predicted.sum(axis=1) == num_predictions(batch["lengths"], 0.15, 20)).all()
    assert not np.isin(batch["input_ids"][predicted], tokenizer.all_special_ids).any()
    print(
        f"{script:10} {len(found)} sentences of {splits['train']['tokens'] / splits['train']['sentences']:4.1f} tokens"
        f"  {percent:4.1f} % of the letters stripped if uncased  {100 * not_next:4.1f} % NotNext"
        f"  {100 * predicted.sum() / batch['lengths'].sum():4.1f} % predicted"
    )


@pytest.mark.parametrize("script", ["Vietnamese", "Hangul", "Japanese"])
@pytest.mark.parametrize(("form", "other"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_text_in_another_unicode_form_than_the_vocabulary_is_named(script, form, other, tmp_path):
    texts = [unicodedata.normalize(form, text) for text in paragraphs(script)]
    tokenizer = train_wordpiece(texts, vocab_size=500, lowercase=False)
    texts[::10] = [unicodedata.normalize(other, text) for text in texts[::10]]
    try:
        warnings = build(tmp_path, texts, tokenizer, validation_share=0.1).manifest["warnings"]
    except InputError as error:  # too many [UNK]
        warnings = [str(error)]
    assert any(f"of the sentences are not in Unicode's form {form}" in warning for warning in warnings)
