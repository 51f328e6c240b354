"""What is said of each language where tasks are read and filtered: its script and some words.

headers: what a writer may call the three fields, beside the English names.
keywords: what a model of text can neither see, hear, draw nor open; self-instruct's list, for each
    language. Case does not count. They are whole words where a language has spaces around its words
    and parts of the text elsewhere.
common: words that nearly every text of some length holds, for languages in Latin letters.
letters: the letters that are its own, as a regular expression's class, where they are not Latin.
"""

from dataclasses import dataclass

Headers = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True)
class Lexicon:
    """See above. headers: (instruction, input, output)."""

    headers: Headers = ((), (), ())
    keywords: tuple[str, ...] = ()
    common: frozenset[str] = frozenset()
    letters: str = ""


def _lexicon(headers: str, keywords: str, common: str = "", letters: str = "") -> Lexicon:
    """Fields are cut by |, names of a field by /, words by a space or, where they hold one, by a
    comma."""
    instruction, given, output = (tuple(part.split("/")) for part in headers.split("|"))
    cut = [word.strip() for word in keywords.split("," if "," in keywords else None)]
    return Lexicon((instruction, given, output), tuple(cut), frozenset(common.split()), letters)


def _one_of(words: str) -> frozenset[str]:
    return frozenset(words.split("|"))


# A keyword is a part of the text here: no spaces, or endings and particles that stick to a word.
STUCK = ("zh", "ja", "th", "ko")

LEXICON = {
    "en": _lexicon(
        "Instruction|Input|Output",
        "image, images, picture, pictures, photo, photos, photograph, photographs, graph, graphs, "
        "chart, charts, diagram, diagrams, flowchart, file, files, map, maps, draw, plot, video, "
        "videos, audio, sing, website, go to",
        "the of and to in is that for it with as on be this are by from at or an which you your "
        "following given write what not have has was were can will",
    ),
    "zh": _lexicon(
        "指令/指示|输入|输出",
        "图片 图像 照片 图表 流程图 视频 音频 录音 文件 附件 地图 画出 绘制 播放 网站 网页",
        letters="\u4e00-\u9fff\u3400-\u4dbf",
    ),
    "ru": _lexicon(
        "Инструкция|Ввод/Вход/Входные данные|Вывод/Выход/Выходные данные",
        "изображение, изображения, изображении, картинка, картинку, картинки, картинке, фото, "
        "фотография, фотографию, фотографии, фотографиях, график, графике, графика, диаграмма, "
        "диаграмму, диаграмме, схема, схему, видео, аудио, файл, файла, файле, файлы, карта, "
        "карту, карте, нарисуй, нарисуйте, нарисовать, начерти, начертите, сайт, сайта, сайте",
        letters="\u0400-\u04ff",
    ),
    "es": _lexicon(
        "Instrucción/Instruccion/Instrucciones|Entrada|Salida",
        "imagen, imágenes, foto, fotos, fotografía, fotografías, gráfico, gráficos, gráfica, "
        "gráficas, diagrama, diagramas, archivo, archivos, fichero, ficheros, mapa, mapas, dibuja, "
        "dibujar, dibujo, vídeo, vídeos, video, videos, audio, audios, sitio web, página web",
        "a el la los las de del en y que un una por para con se es su al lo como más o si sus "
        "siguiente está este esta no",
    ),
    "de": _lexicon(
        "Anweisung/Instruktion|Eingabe|Ausgabe",
        "bild, bilder, bildern, bildes, foto, fotos, fotografie, grafik, grafiken, diagramm, "
        "diagramme, diagramms, schaubild, datei, dateien, karte, landkarte, zeichne, zeichnen, "
        "zeichnung, video, videos, audio, audiodatei, website, webseite",
        "der die das und in den von zu mit sich des auf für ist im dem nicht ein eine einen einer "
        "eines als auch es an aus oder wie folgenden bei wird sind",
    ),
    "fr": _lexicon(
        "Consigne|Entrée/Entree|Sortie",
        "image, images, photo, photos, photographie, photographies, graphique, graphiques, "
        "diagramme, diagrammes, schéma, schémas, fichier, fichiers, carte, cartes, dessine, "
        "dessinez, dessiner, dessin, vidéo, vidéos, audio, site web, page web",
        "le la les de des du et en un une que qui pour dans est sur par avec au aux ce cette ces "
        "se il elle ne pas plus ou sont suivante suivant l'",
    ),
    "it": _lexicon(
        "Istruzione/Istruzioni|Ingresso|Uscita",
        "immagine, immagini, foto, fotografia, fotografie, grafico, grafici, diagramma, diagrammi, "
        "file, mappa, mappe, disegna, disegnare, disegno, video, audio, sito web, pagina web",
        "il lo la i gli le di del della dei delle in e che un una per con si è al alla da non sono "
        "come su nel nella più o seguente questo questa",
    ),
    "pt": _lexicon(
        "Instrução/Instruções|Entrada|Saída/Saida",
        "imagem, imagens, foto, fotos, fotografia, fotografias, gráfico, gráficos, diagrama, "
        "diagramas, arquivo, arquivos, ficheiro, ficheiros, mapa, mapas, desenhe, desenhar, "
        "desenho, vídeo, vídeos, áudio, áudios, site, página web",
        "o a os as de do da dos das em no na e que um uma para com por se é ao à seu sua como mais "
        "ou não seguinte este esta são",
    ),
    "ja": _lexicon(
        "指示/命令|入力|出力",
        "画像 写真 図表 グラフ フローチャート 動画 ビデオ 音声 音楽を再生 ファイル 添付 地図 "
        "描いてください ウェブサイト",
        letters="\u3040-\u30ff\u4e00-\u9fff\u3400-\u4dbf々",
    ),
    "vi": _lexicon(
        "Hướng dẫn/Chỉ dẫn|Đầu vào|Đầu ra",
        "hình ảnh, bức ảnh, tấm ảnh, bức tranh, đồ thị, biểu đồ, sơ đồ, tệp, tập tin, bản đồ, vẽ, "
        "video, âm thanh, trang web",
        "và của là các có cho được một những trong với để này không người đã khi từ về đến hãy "
        "như bạn theo sau câu viết",
    ),
    "id": _lexicon(
        "Instruksi/Perintah|Masukan|Keluaran",
        "gambar, foto, grafik, diagram, bagan, berkas, file, peta, gambarlah, gambarkan, video, "
        "audio, situs web",
        "yang dan di dari untuk dengan ini itu pada adalah dalam tidak akan ke atau sebuah oleh "
        "anda seorang tersebut berikut bisa dapat karena buatlah tulis",
    ),
    "pl": _lexicon(
        "Instrukcja/Polecenie|Wejście/Dane wejściowe|Wyjście/Dane wyjściowe",
        "obraz, obrazy, obrazie, obrazek, obrazku, zdjęcie, zdjęcia, zdjęciu, fotografia, "
        "fotografię, fotografii, wykres, wykresu, wykresie, diagram, diagramu, schemat, plik, "
        "pliku, pliki, mapa, mapę, mapie, mapy, narysuj, narysować, wideo, audio, film, stronę "
        "internetową",
        "i w z na do się że nie jest to o jak po dla od który która które co oraz za przez ten "
        "tego są lub czy podane następujące",
    ),
    "nl": _lexicon(
        "Instructie|Invoer|Uitvoer",
        "afbeelding, afbeeldingen, foto, foto's, plaatje, plaatjes, grafiek, grafieken, diagram, "
        "diagrammen, bestand, bestanden, kaart, landkaart, teken, tekenen, tekening, video, "
        "video's, audio, website, webpagina",
        "de het een en van in is dat op te met voor zijn die niet aan er om als ook bij naar uit "
        "of over je door volgende deze dit wordt",
    ),
    "ar": _lexicon(
        "التعليمات/التعليمة/تعليمات|المدخلات/المدخل/الإدخال/مدخل|"
        "المخرجات/المخرج/الإخراج",
        "صورة الصورة صور الصور رسم الرسم بياني البياني مخطط المخطط ملف الملف ملفات الملفات خريطة "
        "الخريطة ارسم فيديو الفيديو صوتي الصوتي موقع",
        letters="\u0600-\u06ff\u0750-\u077f",
    ),
    "tr": _lexicon(
        "Talimat/Yönerge|Girdi/Giriş|Çıktı/Çıkış",
        "resim, resmi, resimdeki, resimler, görsel, görseli, görseldeki, fotoğraf, fotoğrafı, "
        "fotoğraftaki, fotoğraflar, grafik, grafiği, grafikteki, diyagram, şema, dosya, dosyayı, "
        "dosyadaki, harita, haritayı, haritada, çiz, çizin, çiziniz, video, videoyu, ses kaydı, "
        "web sitesi",
        "ve bir bu için ile de da olan olarak çok daha gibi ne en kadar sonra var her ya veya "
        "verilen aşağıdaki değil olduğu mi",
    ),
    "th": _lexicon(
        "คำสั่ง/คำแนะนำ|ข้อมูลนำเข้า/อินพุต/ข้อมูลเข้า|ผลลัพธ์/เอาต์พุต",
        "รูปภาพ ภาพถ่าย กราฟ แผนภูมิ แผนผัง ไฟล์ แผนที่ วาดภาพ วาดรูป วิดีโอ คลิปเสียง เว็บไซต์",
        letters="\u0e00-\u0e7f",
    ),
    "he": _lexicon(
        "הוראה/הנחיה|קלט|פלט",
        "תמונה התמונה בתמונה תמונות התמונות צילום גרף הגרף בגרף תרשים התרשים קובץ הקובץ בקובץ "
        "קבצים מפה המפה במפה צייר ציירו ציירי שרטט וידאו סרטון אודיו אתר",
        letters="\u0590-\u05ff",
    ),
    "ko": _lexicon(
        "지시/지시문/지침/명령|입력|출력",
        "이미지 사진 그림을 그래프 도표 순서도 다이어그램 파일 지도에 지도를 "
        "그리세요 그려 동영상 비디오 오디오 웹사이트",
        letters="\uac00-\ud7af\u1100-\u11ff\u3130-\u318f",
    ),
}  # fmt: skip

ENGLISH: Headers = LEXICON["en"].headers

# What a program writes where there is nothing; and how a person says that a task has no input. In
# lower case, without brackets. The latter are answers too: "нет" may be right.
NOTHING = _one_of("|noinput|no input|no_input|none|null|nil|nan|n/a|-|–|—|…")
NO_INPUT = NOTHING | _one_of(
    "sin entrada|noentrada|ninguna|keine eingabe|keine|pas d'entrée|aucune entrée|aucune|"
    "nessun input|nessuno|sem entrada|nenhuma|tidak ada masukan|tidak ada input|tidak ada|"
    "brak danych|brak|geen invoer|geen|girdi yok|yok|нет ввода|без ввода|нет|入力なし|なし|无输入|"
    "無輸入|无|無|입력 없음|없음|không có đầu vào|không có|ไม่มีข้อมูลนำเข้า|ไม่มี|لا يوجد مدخل|لا يوجد|"
    "بدون مدخلات|ללא קלט|אין קלט|אין"
)


def lexicon_of(language: str) -> Lexicon:
    """A language's, whatever its region, or an empty one: no keyword and no script is known."""
    return LEXICON.get(language.split("-")[0], Lexicon())
