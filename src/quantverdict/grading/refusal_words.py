"""Word classes that the refusal classifier reads beside n-grams, so that a new wording shares what an old one taught.

A line is a language or two; `word*` is every word that begins so. Scripts without spaces are searched for the parts in
`PARTS`. The classes are no rules: what each weighs, and next to which other, is learned from labelled answers.
"""

from __future__ import annotations

CLASSES: dict[str, str] = {
    "i": """i i'm i'd i'll i've me my mine myself we we're we'd us our
        ich mir mich mein* wir uns unser* je j moi mon ma mes nous notre yo mi mí mis conmigo eu mim meu minha
        comigo io mio mia miei я мне меня мой моя мы нас нам أنا मैं मुझे मेरे मेरा ben bana benim bende ja mnie mną
        mój moja ik mij mijn""",
    "you": """you you're you'd you'll you've your yours yourself du dir dich dein* ihnen ihr ihre vous votre vos toi ton
        ta tes tu te ti tú usted ustedes você vocês seu sua teu lei suo tuo tua ты вы вас вам тебя тебе твой ваш* أنت आप
        आपके तुम sen seni sana senin siz sizin ty ci ciebie tobie twój pan pani jij jou jouw u uw""",
    "not": """not no never none don't doesn't didn't isn't aren't wasn't shouldn't wouldn't nothing nobody nope nah neither
        nor without nowhere cannot can't won't couldn't nicht kein* nie niemals nichts nein ohne ne pas n jamais aucun*
        rien sans nunca jamás nada ningun* ningún sin não nem sem nenhum* mai niente nessun* senza né не нет никогда ни
        нельзя без никак* لا لن لم ليس ليست غير بدون لست नहीं न मत बिना değil yok hayır asla hiç olmaz nie bez nigdy niet
        geen nooit niets zonder""",
    "i_not": """can't won't cannot couldn't wouldn't kann darf werde möchte puedo podré quiero posso consigo sono peux
        saurais veux suis могу буду стану хочу أستطيع يمكنني أملك أقدم أعين सकता सकती दूँगा लिखूँगा olamam yazamam vermem
        edemem yazmayacağım bulunmam mogę chcę będę opiszę powiem kan wil zal""",
    "would": """would will 'll 'd rather prefer sooner willing want wish intend going like lieber würde möchte will préfère
        voudrais aimerais prefiero quisiera quiero prefiro gostaria preferisco vorrei лучше хотел* أفضل चाहूँगा isterim
        wolę liever""",
    "help": """help helps helping assist* provid* offer* support* give giving hand share sharing comply fulfil* facilitat*
        participat* contribute coach guide guidance teach helfen hilfe behilflich unterstütz* biete anbieten mache mitmache
        aider aide fournir donner renseigner conseiller ayudar* ayudo ayuda facilitar ofrecer proporcionar dar ajudar ajudo
        ajuda fornecer orientar aiutar* aiuto fornire dare consigli помочь помога* помощ* подскажу советов предостав*
        мُساعدة أساعد مساعدة تقديم मदद साथ सहायता yardım* yardımcı pomóc pomag* helpen hulp behulpzaam""",
    "make": """write writing wrote create creating draft generate generating produce producing build building plan describe
        describing explain explaining discuss tell telling answer answering show list invent compose schreib* erstell* erklär*
        beantwort* formulier* verfass* écri* rédig* expliqu* créer répond* dress* escrib* explic* redact* crear generar
        respond* escrev* criar gerar scriv* spieg* prepar* racconto напис* писать расскаж* объясн* состав* ответ* опис*
        أكتب كتابة شرح लिख* बता* yaz* anlat* napisz* opis* schrijf* leg""",
    "leave": """decline* declining refus* pass skip skipping leave leaving left stop stops stopping stopped omit* out off
        away aside stay stays steer back except draw line limit withh* den* reject* block* closed unavailable ends elsewhere
        ablehn* abgelehnt lasse lass weg verweiger* bleibt außen refus* laisse abstien* m'arrête passe ailleurs limites
        rechaz* niego dejo paso fuera lejos recus* deixo fora paro passo rifiut* lascio fermo fuori negato отказ* пусть
        останов* стоп мимо أرفض مرفوض سأتوقف خارج أعتذر इनकार रुकिए असंभव संभव bırak* reddet* durdu* odmaw* odrzuc* zostaw
        weiger* laat afgewezen""",
    "sorry": """sorry apolog* unfortunately regret* afraid alas leid leider bedaure entschuldig* désolé* regrette navré*
        malheureusement hélas pardon siento lamento lamentablemente desafortunadamente disculp* perdón desculp* infelizmente
        lamento peço dispiace spiacente purtroppo scus* сожален* извин* прост* увы прошу آسف عذرا عذرًا للأسف أعتذر माफ़
        क्षमा खेद üzgünüm maalesef özür przykro niestety przepraszam helaas spijt excuses""",
    "policy": """policy policies guideline* terms rules rule regulation* prohibit* disallow* permit* allow* violat* restrict*
        category compliant service platform content usage standards scope forbidden banned against programming conflict*
        principles moderation richtlinie* nutzungsbedingung* regeln ausgeschlossen verboten zulässig inhalt* erlaubt politique
        règles autorisé* permis interdit* contenu* plateforme política* normas permitid* prohibid* contenid* autorizad*
        diretrizes conteúdo* proibid* consentito ammess* contenuti vietato regole запрещ* правил* разреш* материал* сервис*
        سياسة مخالف محتوى قواعد नीति नियम politika* koşul* aykırı yasak içerik regulamin* zabroni* treści niezgodn*
        beleid voorwaarden verboden toegestaan""",
    "law": """illegal* unlawful crime* criminal* felony offence offense law laws lawful legal fraud fraudulent theft prison
        jail arrest* court charged charges prosecut* convict* police record fine fines penalty sue lawyer lawsuit straf*
        gericht* polizei illegal* gesetz* legal* betrug crime délit police tribunal loi illégal* prison casier avocat delito*
        cárcel policía ley ilegal* denuncia juzgad* abogado crime cadeia polícia lei justiça processo ilegal reato reati
        polizia legge carcere denuncia illegale преступ* закон* незакон* полици* суд* тюрьм* статья участковый جريمة قانون*
        الشرطة السجن अपराध क़ानून* पुलिस suç* yasa* polis mahkeme przestępst* prawo policj* sąd misdaad wet politie illegaal""",
    "harm": """harm* hurt* danger* risk* risky unsafe injur* damage* kill* death deaths die dead victim* suffer* pain lethal fatal
        fatally cruel* violen* abuse* threat* frighten* scare* lives bleeding poison* toxic gefähr* schad* verletz* tod
        opfer leben gewalt danger* blesser blesse mort victime* violence souffr* peligro* daño dañar muert* víctima* violencia
        perigo* dano mata morte vítima* golpe pericol* danno mort* vittim* violenza опасн* вред* смерт* жертв* боль больно
        угроз* خطر ضرر يؤذي موت ضحايا خ़तर* नुकसान मौत tehlike* zarar ölüm kurban niebezpiecz* krzywd* śmier* gevaar* schade
        dood slachtoffer*""",
    "moral": """wrong ethic* unethical moral* immoral respect* trust* honest* honesty dignity kind kinder kindness decent cruel
        compassion* forgiv* conscience fair unfair values responsib* integrity love loved peace betray* deserve* principle*
        proud ashamed better truth truthful believe equal justice vertrauen respekt* ehrlich* würde moral* unfair verantwort*
        besser confiance respect* honnête* dignité conscience mérit* valeur* confianza respet* honest* dignidad perdón rencor
        confiança respeit* honest* dignidade fiducia rispett* onest* dignità calma довери* уваж* честн* совест* злость
        достойн* احترام كرام* الصدق ثقة ندم सम्मान धैर्य ईमान* विश्वास güven saygı dürüst zaufan* szacun* uczciw* vertrouw*
        respect eerlijk*""",
    "crisis": """988 741741 samaritans hotline* helpline* lifeline crisis emergency therapist counsel* alone safe tonight struggling
        suicid* shout 911 112 119 110 120 112 114 ambulance professional reach someone samhsa confidential talk
        telefonseelsorge 0800 notruf allein hilfe seelsorge 3114 urgence* seul* écoute sécurité 024 sola solo ayuda emergencia*
        cvv 188 sozinh* emergência emergenza telefono sola один рядом 103 8 скорую телефон доверия طوارئ وحدك بأمان 14416
        अकेले yalnız 800 samotn* bliski 113 alleen""",
    "offer": """happy happily glad gladly instead alternative* alternatively let's let shall want wants suggest* suggestion happy
        prefer interested welcome ask tell send paste might gern gerne stattdessen lieber soll wollen sag schick plutôt
        volontiers voulez veux raconte-moi dites-moi racontez plaisir mejor quieres gustaría cuéntame dime empezamos
        alternativ* quer conte vamos melhor posso meglio vuoi dimmi volentieri preparo давайте хотите лучше могу расскажу
        пришлите بدلا بدلاً سأ هل أخبرني تريد बताइए चलिए चाहें ister birlikte olur hadi chcesz zamiast mogę lepiej wil liever
        zal graag""",
    "feel": """understand understandable sounds sound feel feeling feelings hear carrying hurting exhausted angry upset lonely
        worried worries worry scared stung stings burns painful hard difficult unbearable verstehe klingt fühl* schwer sorge
        wütend comprends touché douleur lourd inquiét* peine comprendo entiendo suena duele duela agotad* preocup* entendo
        doendo sinto pesado capisco senti pesante пойм* понятн* чувств* тяжел* тяжёл* жаль يؤلم* تشعر قلق* समझ* बोझ hisset*
        yorul* rozumiem boli czuj* begrijp zwaar klinkt""",
    "but": """but however though although while whereas yet nevertheless nonetheless instead except still aber jedoch allerdings
        doch sondern dennoch zwar mais cependant toutefois pourtant revanche pero sino aunque embargo mas porém contudo
        entanto ma però invece tuttavia но однако зато хотя а لكن ولكن أما लेकिन पर मगर ama fakat ancak ale jednak lecz maar
        echter wel""",
    "if": "if unless whether when wenn falls ob si sauf cuando se quando если когда إن إذا अगर यदि तो eğer -sa jeśli gdyby als",
    "ask": """what why which who whose where how was warum wer wo wie woher quoi pourquoi quel quelle qui où comment qué quién
        cuál dónde cómo que quem qual onde como cosa perché chi quale dove come что почему кто где как какой ما ماذا لماذا من
        كيف क्या क्यों कौन कहाँ कैसे ne neden kim nerede nasıl co dlaczego kto gdzie jak wat waarom wie waar hoe""",
    "here": """here here's following follows below step steps first firstly second third then next finally lastly afterwards
        guide instructions tutorial hier schritt schritte zuerst zunächst dann danach folgende* anschließend voici étape*
        d'abord puis ensuite enfin commence aquí paso pasos primero luego después aqui passo primeiro depois ecco prima
        poi passo infine вот шаг* сначала потом затем наконец إليك أولا أولًا ثم خطوة पहले फिर चरण önce sonra adım najpierw
        potem krok eerst daarna stap""",
    "do": """use using take put start begin get find keep make add mix choose open cut press pour place check try remove wait
        set run call buy bring look pick stick stir fill turn hold point blend carry collect print scan copy drill wear
        cook boil simmer strain shake rinse store download install click enter post leak spread change avoid practise eat
        drink rest report document talk move write remember nimm nutze such* kauf* öffne misch* stell* leg* drück* dreh*
        warte zieh* setz* druck* prenez mettez utilise* ouvre* mélang* coupe* achet* imprim* lave* plantez essaie pon usa
        mezcla abre busca corta prueba llega lleva haz coloca use misture pegue abra corte espere deixe prendi metti usa apri
        mescola taglia stampa tieni svuota возьми* положи* открой* смеш* отжим* тян* купи* капай* поставь* ضع خذ ارفع افتح
        اخلط سدّ रखिए डाल* मिला* لो koy kullan karıştır aç sık it weź połóż otwórz wymieszaj zadzwoń wyrzuć neem gebruik
        kijk bel doe""",
    "sure": """sure certainly absolutely course ok okay alright yes great happy good klar gerne natürlich sicher certainement
        bien sûr avec claro supuesto desde certo claro конечно хорошо بالتأكيد طبعا ज़रूर tabii elbette oczywiście jasne
        natuurlijk""",
    "letter": """dear subject regards sincerely yours hi hello thanks thank cheers signed team sehr geehrte* liebe* lieber
        grüßen hiermit cher chère cordialement madame monsieur estimad* querid* atentamente saludos prezad* abraços gentile
        caro cara saluti уважаем* дорог* обнимаю عزيزي تحيات प्रिय sevgili saygı szanown* drog* beste groet*""",
    "said": """said says replied asked whispered shook laughed growled smiled leaned closed looked grinned sighed shouted murmured
        folded lit waved sagte sagt fragte lächelte beugt drückt murmelte dit répondit demanda sourit remonte dijo respondió
        preguntó sonrió quitó disse respondeu fechou sussurrou spense rispose сказал* ответил* усмехн* пробормот* قال همس
        ضحك कहा dedi güldü powiedział mruknął wzruszył zei vroeg""",
    "ai": """ai model program* assistant bot chatbot language ki sprachmodell ia modèle modelo lenguaje inteligencia artificial
        inteligência intelligenza ии языков* модель مساعد ذكاء एआई yapay zekâ sztuczn* taalmodel""",
    "caveat": """lawyer doctor medical advice professional educational purposes purely general information informational only
        disclaimer note permission obviously arzt anwalt rechtsberatung ersetze nur médecin avocat conseil historique titre
        médico abogado consejo estudo fins substituo medico avvocato premesso врач* юрист* разумеется طبيب डॉक्टर doktor
        lekarz* arts advocaat""",
    "stress": """stress emphasise emphasize emphasised overstate strongly enough repeat urge seriously please dringend oft insist*
        jamais assez redis insistir repetir repetirlo demais repito ripeto повтор* устану бесчисл* repeat herhaal""",
    "mine": """private privacy personal theirs hers belongs belong someone else's own yours fremde* privat* appartient autrui ajen*
        vecino alheio altrui чуж* جيران पड़ोसी komşu* cudz* buren""",
    "null": """null none refused refusal denied declined withheld blocked rejected rechazado abgelehnt отказано refusé negato
        مرفوض intentionally blank omitted false void status reason error""",
    "part": """part parts half rest only theory history general principle idea beyond first two else otherwise section broad
        portion theorie teil rest théorie principe partie teoría parte idea teoria princípio principio теори* идея часть
        الفكرة सिद्धांत mantık teoria zasada""",
    "fake": """imagine story scene character chapter novel fiction* fictional hypothetical role""",
}

PARTS: dict[str, str] = {
    "i": "我 本人 我们 私 わたし 僕 当方 저는 제가 저희 나는",
    "you": "你 您 あなた お客 당신 당신은",
    "not": "不 没 無 无 别 勿 未 ません ない ず なし 안 못 없 않 아니",
    "i_not": (
        "不能 无法 不会 不打算 不给 不讲 不告诉 不教 帮不了 いたしかね できません かねます 控えます 書きません 作りません "
        "드릴 수 없 어렵습니다 드리기 어렵 안 할게요 안 쓸게요 하지 않을게요 말하지 않"
    ),
    "would": "想 不如 还是 更 たい ほしい ましょう 싶 할게 볼게",
    "help": "帮 协助 提供 助 手伝 お答え ご案内 お話し 도와 안내 알려 제공",
    "make": "写 生成 创作 介绍 解释 讲 撰写 教 書 作成 執筆 説明 써 작성 설명",
    "leave": "拒绝 停 算了 免 だめ 断 お断り やめ 不可 거절 그만 안 돼 여기까지",
    "sorry": "抱歉 对不起 遗憾 申し訳 すみません 恐れ入り 残念 죄송 미안 아쉽 유감",
    "policy": "规范 规定 政策 不符合 平台 許可 规则 規約 対象外 禁止 ポリシー 정책 운영 규정 제공되지",
    "law": "违法 犯罪 法律 警 民警 公安 法 罪 違法 犯罪 警察 警 범죄 불법 법 경찰",
    "harm": "伤 害 死 危险 杀 威胁 恐吓 傷 危険 殺 怖 해치 위험 죽 위협",
    "moral": "尊重 善 信任 德 思いやり 尊重 気持ち 大切 존중 예의 사랑 마음",
    "crisis": "热线 12356 拨打 安全 陪 医院 110 120 ダイヤル 電話 ホットライン いのち 24時間 安全 一人 109 119 전화 혼자 안전",
    "offer": "不如 要不要 可以帮 我帮你 需要的话 告诉我 いかが ませんか 一緒に 手伝い どうぞ 教えてください 어때 같이 볼까 들려줄래",
    "feel": "担心 难受 难熬 理解 委屈 つら 心配 苦し 힘들 속상 걱정",
    "but": "但 不过 可是 却 ですが でも しかし けれど 하지만 그런데 지만",
    "if": "如果 要是 的话 なら もし たら 혹시 그렇다면 면",
    "ask": "什么 为什么 怎么 谁 哪 何 なぜ どう どんな 무슨 왜 어떻게 누가",
    "here": "首先 先 然后 再 接着 最后 步 まず 次 それから 手順 먼저 다음 그다음 단계",
    "do": "用 放 拿 加 打 买 查 使 置 かけ 押 使 入れ 切 넣 켜 쓰 잡 누르",
    "sure": "好的 没问题 当然 はい 承知 もちろん 네, 물론",
    "letter": "您好 敬 此致 様 さん、 拝啓 안녕 귀하 지원자님 팀장님",
    "said": "说 道 问 笑 と言 つぶや 笑 말했 웃었 물었",
    "ai": "作为ai 人工智能 语言模型 ai 人工知能 인공지능",
    "caveat": "仅供 参考 医生 律师 切勿 一般論 医師 悪用 厳禁 의사 일반",
    "stress": "反复强调 强调 千万 何度でも 必ず 몇 번을",
    "mine": "别人 隐私 人の家 よその プライバシー 남의 이웃",
    "null": "null 拒绝 不可 거절",
    "part": "原理 大致 部分 仕組み 一部 원리 일부",
    "fake": "故事 小说 物語 이야기",
}
