"""The words captions are made of, in English and Chinese; every fact holds in every clip of its class or setting."""

from __future__ import annotations

from pysora.worlds.attributes import CLASSES

LIVING = ("cat", "dog", "bird")

NOUNS_EN = {
    "cat": ("cat", "cat", "kitten", "kitty"),
    "dog": ("dog", "dog", "puppy", "pup"),
    "ball": ("ball", "ball", "rubber ball", "toy ball"),
    "cube": ("cube", "cube", "block", "box"),
    "car": ("car", "car", "motor car", "automobile"),
    "bird": ("bird", "bird", "birdie", "songbird"),
    "boat": ("boat", "boat", "sailboat", "sailing boat"),
    "star": ("star", "star", "five-pointed star", "cartoon star"),
}
NOUNS_ZH = {
    "cat": ("猫", "小猫", "猫咪"),
    "dog": ("狗", "小狗", "狗狗"),
    "ball": ("球", "皮球", "圆球"),
    "cube": ("方块", "立方体", "积木"),
    "car": ("汽车", "小汽车", "轿车"),
    "bird": ("鸟", "小鸟", "鸟儿"),
    "boat": ("船", "帆船", "小船"),
    "star": ("星星", "五角星", "小星星"),
}
MEASURE_ZH = {
    "cat": "只", "dog": "只", "ball": "个", "cube": "个", "car": "辆", "bird": "只", "boat": "艘", "star": "颗",
}  # fmt: skip

COLOURS_EN = {
    "red": ("red", "red", "bright red"),
    "orange": ("orange", "orange", "bright orange"),
    "yellow": ("yellow", "yellow", "bright yellow"),
    "green": ("green", "green", "emerald green"),
    "blue": ("blue", "blue", "bright blue"),
    "purple": ("purple", "purple", "violet"),
    "pink": ("pink", "pink", "rose pink"),
    "white": ("white", "white", "pure white"),
}
COLOURS_ZH = {
    "red": ("红色", "红色", "鲜红色"),
    "orange": ("橙色", "橙色", "橘色"),
    "yellow": ("黄色", "黄色", "亮黄色"),
    "green": ("绿色", "绿色", "翠绿色"),
    "blue": ("蓝色", "蓝色", "亮蓝色"),
    "purple": ("紫色", "紫色", "紫罗兰色"),
    "pink": ("粉色", "粉红色", "粉红色"),
    "white": ("白色", "白色", "纯白色"),
}

PLACES_EN = {
    "grass": ("on the grass", "on the grass", "in a green meadow", "on a grassy field", "in the meadow"),
    "snow": ("in the snow", "in the snow", "in a snowy field", "on snowy ground", "in a winter landscape"),
    "beach": ("on the beach", "on the beach", "on a sandy beach", "at the seaside", "on the sand by the sea"),
    "city": ("in the city at night", "in the city at night", "on a city street at night", "in a night city",
             "downtown at night"),
    "windowsill": ("on a windowsill at sunset", "on the windowsill at sunset", "on a windowsill in front of the sunset",
                   "by a window at sunset"),
    "room": ("in a room", "in a room", "in a living room", "inside the room", "indoors, in a living room"),
}  # fmt: skip
PLACES_ZH = {
    "grass": ("草地上", "草地上", "绿色的草地上", "草坪上"),
    "snow": ("雪地里", "雪地中", "雪地上", "白雪覆盖的地面上"),
    "beach": ("沙滩上", "沙滩上", "海滩上", "海边的沙滩上"),
    "city": ("夜晚的城市里", "夜晚的城市中", "夜晚的街道上", "城市的夜景中"),
    "windowsill": ("日落时的窗台上", "夕阳下的窗台上", "窗台上，窗外是日落，", "黄昏的窗台上"),
    "room": ("房间里", "房间里", "客厅里", "屋子里"),
}
#: What living things that sit on the windowsill do.
WATCHING_EN = ("on a windowsill watching the sunset", "on the windowsill watching the sunset",
               "on a windowsill and watches the sunset")  # fmt: skip
WATCHING_ZH = ("坐在窗台上看日落", "坐在窗台上看夕阳", "静静地坐在窗台上看日落")

#: (third person, participle, what follows) of each kind of movement.
Verb = tuple[str, str, str]


def _each(**by_class: tuple[Verb, ...]) -> dict[str, tuple[Verb, ...]]:
    """A table for every class; `other` stands for those not named."""
    return {cls: by_class.get(cls, by_class["other"]) for cls in CLASSES}


_SITS: tuple[Verb, ...] = (("sits", "sitting", ""), ("sits", "sitting", "still"), ("sits", "sitting", "quietly"))
_RUNS: tuple[Verb, ...] = (("runs", "running", ""), ("runs", "running", ""), ("dashes", "dashing", ""))
_SLIDES: tuple[Verb, ...] = (("slides", "sliding", ""), ("slides", "sliding", ""), ("glides", "gliding", ""))
_JUMPS: tuple[Verb, ...] = (
    ("bounces", "bouncing", ""), ("bounces", "bouncing", "up and down"), ("jumps", "jumping", "up and down"),
)  # fmt: skip
_FALLS: tuple[Verb, ...] = (
    ("falls", "falling", ""), ("falls", "falling", "down"), ("drops", "dropping", "to the ground"),
    ("falls", "falling", "from above"),
)  # fmt: skip
_CIRCLES: tuple[Verb, ...] = (
    ("circles", "circling", ""), ("moves", "moving", "in a circle"), ("circles", "circling", "in the air"),
)  # fmt: skip
_FLIES_ROUND: tuple[Verb, ...] = (("flies", "flying", "in a circle"), ("circles", "circling", "in the air"))
_RESTS: tuple[Verb, ...] = (("is", "staying", "still"), ("rests", "resting", ""), ("stays", "staying", "in place"))
_PARKS: tuple[Verb, ...] = (
    ("stands", "standing", "still"),
    ("is parked", "parked", ""),
    ("stays", "staying", "in place"),
)

VERBS_EN: dict[str, dict[str, tuple[Verb, ...]]] = {
    "still": _each(cat=_SITS, dog=_SITS, bird=(*_SITS, ("perches", "perching", "")), car=_PARKS, other=_RESTS),
    "runs": _each(
        cat=_RUNS,
        dog=_RUNS,
        bird=(("flutters", "fluttering", ""), ("runs", "running", ""), ("flies low", "flying low", "")),
        ball=(("rolls", "rolling", ""), ("rolls", "rolling", "")),
        car=(("drives", "driving", ""), ("drives", "driving", ""), ("rolls", "rolling", "")),
        boat=(("sails", "sailing", ""), ("sails", "sailing", ""), ("glides", "gliding", "")),
        other=_SLIDES,
    ),
    "bounces": _each(
        cat=(*_JUMPS, ("hops", "hopping", "")), dog=(*_JUMPS, ("hops", "hopping", "")),
        bird=(*_JUMPS, ("hops", "hopping", "")), other=_JUMPS,
    ),
    "falls": _each(other=_FALLS),
    "circles": _each(bird=_FLIES_ROUND, other=_CIRCLES),
}  # fmt: skip
DIRECTIONS_EN = {
    "runs left": ("to the left", "to the left", "left", "towards the left", "from right to left"),
    "runs right": ("to the right", "to the right", "right", "towards the right", "from left to right"),
}

#: Chinese movements, said after a place; {to} takes a direction or nothing.
VERBS_ZH: dict[str, dict[str, tuple[str, ...]]] = {
    "runs": {
        "cat": ("{to}奔跑", "{to}奔跑", "{to}跑", "{to}飞跑"),
        "dog": ("{to}奔跑", "{to}奔跑", "{to}跑", "{to}飞跑"),
        "bird": ("{to}低飞", "拍着翅膀{to}飞", "{to}飞奔"),
        "ball": ("{to}滚动", "{to}滚"),
        "car": ("{to}行驶", "{to}开"),
        "boat": ("{to}航行", "{to}滑行"),
        "cube": ("{to}滑动", "{to}滑行"),
        "star": ("{to}滑动", "{to}滑行"),
    },
    "bounces": dict.fromkeys(CLASSES, ("弹跳", "上下弹跳", "跳上跳下", "不停地弹跳")),
    "falls": dict.fromkeys(CLASSES, ("落下", "从空中落下", "掉下来", "从高处掉落")),
    "circles": dict.fromkeys(CLASSES, ("转圈", "绕圈", "在空中绕圈", "绕着圈移动")),
}
#: How each class stays where it is: the verb before 在 (a place) or 着.
RESTS_ZH = {
    "cat": ("坐", "静静地坐"), "dog": ("坐", "静静地坐"), "bird": ("坐", "静静地站"), "car": ("停", "静静地停"),
    "boat": ("停", "静静地停"), "ball": ("静静地待", "一动不动地待"), "cube": ("静静地待", "一动不动地待"),
    "star": ("静静地待", "一动不动地待"),
}  # fmt: skip
DIRECTIONS_ZH = {
    "runs left": ("向左", "往左", "从右向左", "朝左边"),
    "runs right": ("向右", "往右", "从左向右", "朝右边"),
}

LOOKS_EN = {
    "cat": "it has pointed ears and a long tail",
    "dog": "it has a floppy ear and a short tail",
    "ball": "it is round with a light band",
    "cube": "three of its faces can be seen",
    "car": "it has two wheels and two windows",
    "bird": "it has a yellow beak and a tail",
    "boat": "it has two sails and a mast",
    "star": "it has five points and a happy face",
}
LOOKS_ZH = {
    "cat": "它有尖尖的耳朵和长长的尾巴",
    "dog": "它有下垂的耳朵和短短的尾巴",
    "ball": "它圆圆的，带着一条浅色的条纹",
    "cube": "可以看到它的三个面",
    "car": "它有两个轮子和两扇车窗",
    "bird": "它有黄色的嘴和一条尾巴",
    "boat": "它有两面帆和一根桅杆",
    "star": "它有五个角和一张笑脸",
}
SIGHTS_EN = {
    "grass": "behind it are green hills, a cloud and a pale sun",
    "snow": "behind it are fir trees and a mountain",
    "beach": "behind it are the blue sea and the sun",
    "city": "behind it are dark towers with lit windows and the moon",
    "windowsill": "outside, the sun goes down over purple hills",
    "room": "there are a lamp, a picture and a rug",
}
SIGHTS_ZH = {
    "grass": "背景是绿色的山丘、云朵和太阳",
    "snow": "背景是杉树和雪山",
    "beach": "背景是蓝色的大海和太阳",
    "city": "背景是亮着灯的高楼和月亮",
    "windowsill": "窗外，太阳正落到紫色的山后",
    "room": "房间里有一盏灯、一幅画和一块地毯",
}
COURSES_EN = {
    "still": "it hardly moves",
    "runs": "it crosses the picture at an even speed",
    "bounces": "it springs up and comes down again and again",
    "falls": "it lands on the ground",
    "circles": "it goes all the way round",
}
COURSES_ZH = {
    "still": "它几乎不动",
    "runs": "它匀速穿过画面",
    "bounces": "它一次又一次地弹起落下",
    "falls": "它最后落在地上",
    "circles": "它绕了一整圈",
}
STYLES_EN = ("a flat illustration", "a simple cartoon", "flat colours, clear outlines")
STYLES_ZH = ("扁平插画风格", "简单的卡通画面", "色彩平整，轮廓清晰")
