"""Descriptions: the taxonomy's say all that the report's category captions say, and a file of one's own can replace them."""

from __future__ import annotations

import re

import pytest

from llava_pose.data.descriptions import description_of, read_descriptions
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.pose.categories import Category

ALL = categories.all_categories()

# what a description must speak of, each by words of its own
SHAPE = """
arch arched ball bar barrel bell bent blade block body bowl box bowed branching broad bulb bulbous bulging circular
closed column compact concave cone conical cube cuboid cup curved cylinder cylindrical deep disc dish dome domed drum
elongated flat frame heavy hemisphere hemispherical hexagonal high hollow hull huge long loop low narrow narrows open
oval panel pear plate pointed prism pyramid rectangular rectangle ring rod round rounded seat shaft shallow shell
short slab slender slim small smooth sphere spherical spiral square squat stick stout straight strip tall taper
tapering tapers thick thin triangle triangular tube tubular upright wedge wide
"""
PARTS = """
antenna arm arms armrest armrests axle back backrest barrel base basket basin beam bed bell blade blades board body
bonnet bow bowl brim bristles bulb bulbs bumper burner burners button buttons cab cabin cable cabinet cap case casing
chain chamber chassis chimney chisel clip collar column columns compartment cord cover crank crown cup cushion
cushions deck dial disc dish door doors drawer drawers drum edge edges end ends engine engines eye face feet fin fins
finger fork frame funnel fuselage gauge glass gondola grille grip grips guard hand handle handlebar handles hands head
headband headlamps heel hinge hole holes hood hook hoop horn hose hub hull jaw jaws key keyboard keys knob knobs lamp
lamps ledge leg legs lens lever lid light lights lip loop mast mount mouth mouthpiece muzzle nacelle neck needle net
nose notches nozzle nut opening ovens paddles panel panels pedal pedals peg pegs pipe pipes plate plates platform
plunger pocket pole post posts prongs propeller propellers pump rails rear rib ribs rim ring rods roof rope rotor
rudders rungs runners saddle screen screw seat seats shade shaft shafts shelf shelves shell shoulder shoulders shovel
side sides skirt slats sleeve slit slot slots sockets sole spindle spokes spool spout springs stand stem stick stock
straps string strings struts stud surface switch switches tailplane tank teeth temples tines tip toe tongue top track
tracks trailer tray tread trigger trunk tube tubes turret tyres valve valves vent visor wall walls wheel wheels
windows windscreen wings wire wires
"""
PEOPLE = """
adult archer batter boxers bricklayer builders chemists child children cook crew cyclist cyclists diner driver drivers
engineer engineers families family farmer firefighters golfers herders machinist millers musicians nurse operator
painter paramedics passengers people person photographer pianist pilots player players rescuers rider riders runner
sailors shooter shopper singer skater smokers somebody teachers travellers user visitors walkers weightlifters winner
woodcutter worker workers
"""
USES = """
baked blown brewed carried charged cleaned cooked cut drunk eaten filled fixed gripped heated held hung kept knocked
laid lifted lit locked made moved opened played poured pressed pulled pushed put read ridden rolled sat screwed set
shut sewn stored struck swung taken thrown tied turned used warmed washed watched worn written
"""


def words(text: str) -> set[str]:
    return set(re.findall(r"[\w']+", text.lower()))


def missing(text: str) -> list[str]:
    """What a description does not speak of: the shape, two parts, and in its last sentence how people use it."""
    sentences = re.split(r"(?<=[.:]) ", text)
    found = {
        "shape": words(text) & words(SHAPE),
        "parts": len(words(text) & words(PARTS)) >= 2,
        "use": words(sentences[-1]) & words(USES + PEOPLE),
    }
    return [name for name, there in found.items() if not there]


def own_words(category: Category) -> str:
    """The description without the sentence about the canonical frame."""
    return category.description.split(" In the canonical frame")[0]


@pytest.mark.parametrize("category", ALL, ids=lambda c: c.name)
def test_every_category_has_shape_part_structure_and_how_people_use_it(category: Category) -> None:
    assert missing(own_words(category)) == []


def test_a_description_that_lacks_one_of_them_is_found() -> None:
    assert missing("A thing. It is nice.") == ["shape", "parts", "use"]
    assert missing("A round thing with a handle and a lid. It is nice.") == ["use"]
    assert missing("A thing with a handle and a lid. People use it.") == ["shape"]
    assert missing("A round thing. People use it.") == ["parts"]


# ------------------------------------------------------------------ a file of one's own


@pytest.mark.parametrize(
    "text",
    [
        '{"car": "A box on  wheels.\\nPeople drive it.", "my gizmo": "Round."}',
        '{"car": {"description": "A box on wheels. People drive it."}, "my gizmo": {"caption": "Round."}}',
        '{"car": {"shape": "A box", "parts": "on wheels.", "use": "People drive it."}, "my gizmo": "Round."}',
        '[{"category": "Car", "caption": "A box on wheels. People drive it."}, {"class": "my gizmo", "text": "Round."}]',
        '{"category": "car", "caption": "A box on wheels. People drive it."}\n{"category": "my gizmo", "caption": "Round."}\n',
    ],
    ids=["texts", "objects", "joined", "list", "lines"],
)
def test_every_form_of_a_file_gives_the_same(text, tmp_path):
    file = tmp_path / "texts.json"
    file.write_text(text)
    own = read_descriptions(str(file))
    assert own == {"car": "A box on wheels. People drive it.", "my gizmo": "Round."}
    assert description_of(categories.get("car"), own) == "A box on wheels. People drive it."
    assert description_of(categories.get("bus"), own) == categories.get("bus").description
    assert description_of(Category.custom("my gizmo"), own) == "Round."
    assert description_of(Category.custom("other"), own) == ""


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{}", "there is no description in it"),
        ("[]", "there is no description in it"),
        ('{"car": ""}', "must have a category's name and its description as text"),
        ('{"car": 3}', "must have a category's name"),
        ('{"car": {"a": "b", "c": 3}}', "must have a category's name"),
        ('[{"caption": "Round."}]', "entry 0: must have a category's name"),
        ("[3]", "entry 0: must have"),
        ('{"car": "A <pose6D>."}', "holds angle brackets"),
        ('{"trolleybus": "Long.", "trolley_bus": "Long."}', "is described twice"),
        ("no json", r"texts\.json:1: "),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(text, match, tmp_path):
    file = tmp_path / "texts.json"
    file.write_text(text)
    with pytest.raises(InputError, match=match) as error:
        read_descriptions(str(file))
    assert "\n" not in str(error.value)
