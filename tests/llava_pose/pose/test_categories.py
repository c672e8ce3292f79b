"""The taxonomy: complete, consistent in itself, and true of the CAD models where these are at hand."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.pose.categories import META_CLASSES, Category
from llava_pose.pose.geometry import flip_pose, project_points
from llava_pose.pose.metrics import pose_error, symmetric_pose_error

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
ALIASES = {
    "billbard_table": "billiard_table",
    "trolley_bus": "trolleybus",
    "tennis_table": "table_tennis_table",
}
# every name that the published lists and the released folder hold, their two spellings of one thing included; * known to
# open-vocabulary models
PUBLISHED_TEXT = """
aeroplane* agitator_truck air_hammer* airship ambulance ashtray* ax* axe babby_buggy backpack* barbell* baseball_bat*
basket basketball_hoop battery beaker* bed* bench* bicycle* bicycle_built_for_two bicycle_pump billbard_table
billiard_table blackboard boat* bookshelf bottle* bow bowl bowling_pin boxing_glove bucket bumper_car bus* cabinet
calculator camcorder camera* can cap car* cart cellphone* chain_saw chair chime clock* coffee_maker* comb
combination_lock computer cone cooker cooling_tower* crutch cup curling_stone desk_lamp diningtable* dishwasher* door
dumbbell dune_buggy eraser erlenmeyer_flask eyeglasses* fan faucet ferris_wheel* filing_cabinet fire_extinguisher
fire_truck fish_tank flashlight* fork* forklift french_horn frigate frisbee funnel* garbage_truck glider go_kart
golfcart grinder guitar* hacksaw hair_dryer* hammer* hand_barrow hand_mower harp harvester headphone helmet highchair
hockey_stick hot_air_balloon* hourglass hovercraft interphone iron jar jinrikisha* kettle key* keyboard knife laptop* life_buoy
light_bulb* lighter lipstick* magnifier mailbox megaphone micrometer* microphone* microwave millwheel motorbike* mouse
oboe oscilloscope padlock paintbrush pan* pay_phone pen pencil piano pillow* plate pot power_drill printer projector
punching_bag racket* radiator recreational_vehicle refrigerator* remote_control riding_mower* rifle road_pole*
salt_or_pepper_shaker satellite_dish sax* school_bus scissors scooter screwdriver segway* sewing_machine shaver* shoe*
shopping_cart* shovel* sign* sink skate* skateboard slipper snowmobile sofa sombrero* speaker spoon stapler stove
suitcase* sundial syringe* table_tennis_table tank teapot* telephone tennis_table toaster toilet* toothbrush* tractor
train* trash_bin treadmill* tricycle trolley_bus trolleybus trophy trowel trumpet tub* tvmonitor unicycle
vending_machine violin washer washing_machine watch wheelchair whisk wind_turbine* wine_glass yurt
"""
PUBLISHED = PUBLISHED_TEXT.split()
# of the published lists, but not in the released version 1
NOT_IN_V1 = """
agitator_truck axe babby_buggy basketball_hoop chime combination_lock curling_stone golfcart oboe oscilloscope scooter
trumpet wine_glass
"""
ALL = categories.all_categories()
by_name = pytest.mark.parametrize("category", ALL, ids=lambda c: c.name)


def shared_names(file_name: str) -> list[str]:
    path = SHARED / file_name
    if not path.is_file():
        pytest.skip(f"{path} is not there: the lists of the published dataset are not part of the project")
    return path.read_text().split()


class TestCompleteness:
    def test_counts(self):
        assert len(ALL) == 202
        assert sum(c.in_v1 for c in ALL) == 189
        assert sum(c.known for c in ALL) == 63
        assert [c.name for c in ALL] == sorted(c.name for c in ALL)

    def test_every_published_name_stands_for_one_category(self):
        names = {name.removesuffix("*") for name in PUBLISHED}
        assert len(names) == len(PUBLISHED)
        assert {categories.canonical_name(name) for name in names} == {c.name for c in ALL} == names - set(ALIASES)
        known = {name.removesuffix("*") for name in PUBLISHED if name.endswith("*")}
        assert {c.name for c in ALL if c.known} == known
        assert len(known) == 63

    def test_the_names_of_this_test_are_the_published_ones(self):
        known = set(shared_names("known_categories.txt"))
        # hovercraft is in the released folder, and in no list
        listed = {name.removesuffix("*") for name in PUBLISHED} - {"hovercraft"}
        assert set(shared_names("categories.txt")) | known == listed
        assert known == {name.removesuffix("*") for name in PUBLISHED if name.endswith("*")}

    @pytest.mark.parametrize("file_name", ["categories.txt", "known_categories.txt"])
    def test_every_published_name_resolves(self, file_name):
        names = shared_names(file_name)
        assert {name for name in names if categories.find(name) is None} == set()
        # a name stands for itself unless it is one of the aliases
        assert {name for name in names if categories.canonical_name(name) != ALIASES.get(name, name)} == set()

    def test_the_taxonomy_holds_nothing_but_the_published_names(self):
        published = {*shared_names("categories.txt"), *shared_names("known_categories.txt")}
        assert {c.name for c in ALL} == published - set(ALIASES) | {"hovercraft"}

    def test_what_is_not_in_the_released_version_is_marked(self):
        assert {c.name for c in ALL if not c.in_v1} == set(NOT_IN_V1.split())
        assert not Category.custom("espresso_tamper").in_v1
        assert all(c.in_v1 for c in ALL if c.known), "open vocabulary trains on what is there"

    def test_the_hovercraft_has_all_that_a_category_has(self):
        hovercraft = categories.get("air-cushion vehicle")
        assert (hovercraft.name, hovercraft.meta_class, hovercraft.known) == ("hovercraft", "Vehicles", False)
        assert hovercraft.has_front
        assert hovercraft.flip_azimuth_offset == 0

    def test_known_categories_are_the_published_ones(self):
        assert {c.name for c in ALL if c.known} == set(shared_names("known_categories.txt"))

    def test_every_meta_class_has_known_and_novel_members(self):
        assert {c.meta_class for c in ALL} == set(META_CLASSES)
        assert set(Counter(c.meta_class for c in ALL if c.known)) == set(META_CLASSES)
        assert set(Counter(c.meta_class for c in ALL if not c.known)) == set(META_CLASSES)

    @by_name
    def test_description(self, category: Category):
        text = category.description
        assert len(text.split()) >= 65
        assert 3 <= text.count(". ") + 1 <= 6
        assert f"front is {category.front}, and up points to {category.up}." in text
        assert category.front
        assert category.up

    def test_texts_are_unique(self):
        for texts in ([c.description for c in ALL], [c.display_name.lower() for c in ALL]):
            assert [text for text, n in Counter(texts).items() if n > 1] == []

    @by_name
    def test_names_read_as_english(self, category: Category):
        assert category.indefinite.split()[0] in ("a", "an")
        assert category.indefinite.endswith(category.display_name)
        assert category.plural.endswith("s") or category.plural.endswith("mice")
        assert "_" not in category.display_name + category.indefinite + category.plural
        assert category.is_plural == category.indefinite.startswith("a pair of ")

    def test_articles_follow_the_sound(self):
        assert categories.get("hourglass").indefinite == "an hourglass"
        assert categories.get("unicycle").indefinite == "a unicycle"
        assert categories.get("oboe").indefinite == "an oboe"


class TestLookup:
    @pytest.mark.parametrize(("alias", "name"), ALIASES.items())
    def test_aliases(self, alias, name):
        assert categories.canonical_name(alias) == name
        assert categories.get(alias) is categories.get(name)

    @by_name
    def test_every_name_of_a_category_finds_it(self, category: Category):
        for name in (category.name, *category.aliases, category.display_name, category.display_name.upper()):
            assert categories.find(name) is category
        assert categories.canonical_name(category.name.replace("_", " ")) == category.name
        assert categories.display_name(category.name) == category.display_name

    def test_an_unknown_name_is_an_error_that_helps(self):
        with pytest.raises(InputError, match=r"lists/a\.txt: unknown category 'teapott': did you mean teapot") as error:
            categories.get("teapott", source="lists/a.txt")
        assert "\n" not in str(error.value)
        with pytest.raises(InputError, match=r"unknown category 'qqqq': llava_pose/categories\.json lists the names"):
            categories.canonical_name("qqqq")
        assert categories.find("qqqq") is None

    def test_custom_categories_are_careful(self):
        custom = categories.get("espresso_tamper", allow_custom=True)
        assert custom == Category.custom("espresso_tamper")
        assert (custom.name, custom.indefinite) == ("espresso_tamper", "an espresso tamper")
        assert custom.meta_class not in META_CLASSES
        assert custom.chiral
        assert not custom.known
        assert len(custom.symmetry_group.sampled()) == 1
        assert categories.get("cup", allow_custom=True) is categories.get("cup")
        with pytest.raises(InputError, match="empty"):
            Category.custom(" _ ")

    @pytest.mark.parametrize(
        ("noun", "plural"),
        [
            ("canary", "canaries"),
            ("Ferry", "Ferries"),
            ("toy", "toys"),
            ("song book", "song books"),
            ("brush", "brushes"),
            ("waltz", "waltzes"),
            ("glass", "glasses"),
        ],
    )
    def test_plurals_of_custom_categories(self, noun, plural):
        assert Category.custom(noun).plural == plural

    def test_front_and_up_are_what_the_symmetry_group_leaves_in_place(self):
        for category in categories.all_categories():
            moved = category.symmetry_group.sampled(30)
            front, up = (bool(np.allclose(moved[:, :, axis], np.eye(3)[axis])) for axis in (1, 2))
            assert category.has_up == up, category.name
            assert category.has_front == (front and category.mirror_axis != "y"), category.name


def order_about(group: np.ndarray, axis: int) -> int:
    """How many elements of a finite group (n, 3, 3) are turns about a coordinate axis."""
    direction = np.eye(3)[axis]
    return sum(np.allclose(rotation @ direction, direction) for rotation in group)


class TestSymmetry:
    @by_name
    def test_rotations_are_a_group_and_what_is_declared(self, category: Category):
        group = categories.symmetry_rotations(category.name)
        elements = group.sampled(step_degrees=90)  # coarse, but a group: the turns about an axis by right angles
        np.testing.assert_array_equal(elements[0], np.eye(3))
        np.testing.assert_allclose(elements @ elements.transpose(0, 2, 1), np.tile(np.eye(3), (len(elements), 1, 1)))
        np.testing.assert_allclose(np.linalg.det(elements), 1)
        distances = np.abs(elements[:, None] - elements[None]).max((-1, -2)) + np.eye(len(elements))
        assert distances.min() > 0.5, "an element twice"
        products = (elements[:, None] @ elements[None]).reshape(-1, 1, 3, 3)
        assert (np.abs(products - elements).max((-1, -2)).min(-1) < 1e-12).all(), "not closed"
        for axis, kind in enumerate(category.symmetry):
            # the finite stand-in turns a continuous axis in four steps
            expected = {"none": 1, "2-fold": 2, "4-fold": 4, "continuous": 4}[kind]
            assert order_about(elements, axis) == expected
            assert (kind == "continuous") == (group.axis is not None and group.axis[axis] == 1)

    def test_known_groups(self):
        def shape(name):
            group = categories.symmetry_rotations(name)
            return len(group.rotations), None if group.axis is None else group.axis.tolist()

        assert shape("car") == (1, None)
        assert shape("diningtable") == (2, None)
        assert shape("ashtray") == (4, None)
        assert shape("pillow") == (4, None)
        assert shape("bottle") == (1, [0, 0, 1])
        assert shape("hourglass") == (2, [0, 0, 1])
        assert shape("barbell") == (2, [1, 0, 0])

    def test_sampling(self):
        group = categories.symmetry_rotations("hourglass")
        assert group.sampled().shape == (720, 3, 3)
        assert len(group.sampled(step_degrees=7)) == 2 * 52  # 360 / 7 rounded up
        with pytest.raises(ValueError, match="positive"):
            group.sampled(0)

    def test_a_group_cannot_be_changed_by_who_reads_it(self):
        with pytest.raises(ValueError, match="read-only"):
            categories.symmetry_rotations("car").rotations[0, 0, 0] = 2

    @pytest.mark.parametrize("name", ["hourglass", "barbell", "bottle"])
    def test_the_closed_form_is_the_limit_of_sampling(self, name):
        rng = np.random.default_rng(0)
        pred, true = rng.uniform(-1.5, 1.5, (2, 50, 3))
        group = categories.symmetry_rotations(name)
        exact = symmetric_pose_error(pred, true, *group)
        sampled = symmetric_pose_error(pred, true, group.sampled())
        assert (sampled >= exact - 1e-7).all()
        assert (sampled <= exact + np.radians(0.5)).all()

    def test_a_bottle_forgives_its_azimuth_and_a_car_does_not(self):
        pred, true = np.array([2.0, 0.3, 0.1]), np.array([0.5, 0.3, 0.1])
        bottle, car = (categories.symmetry_rotations(name) for name in ("bottle", "car"))
        assert symmetric_pose_error(pred, true, *bottle) < 1e-12
        assert symmetric_pose_error(pred, true, *car) == pose_error(pred, true)


class TestFlip:
    def test_chiral_categories_have_no_flip(self):
        chiral = {c.name for c in ALL if c.chiral}
        assert {"guitar", "violin", "sax", "scissors"} <= chiral
        assert {"car", "cup", "shoe"}.isdisjoint(chiral)
        for category in ALL:
            assert (category.flip_azimuth_offset is None) == (category.name in chiral)

    @pytest.mark.parametrize(("name", "mirror"), [("car", (-1, 1, 1)), ("cup", (1, -1, 1)), ("hammer", (1, -1, 1))])
    def test_the_corrected_pose_is_that_of_the_flipped_image(self, name, mirror):
        rng = np.random.default_rng(0)
        half = rng.uniform(-0.5, 0.5, (40, 3))
        points = np.concatenate([half, half * mirror])  # an object with the category's plane of symmetry
        camera = {"viewport": 2000.0, "py": 90.0}
        pose = {"azimuth": 0.7, "elevation": 0.4, "theta": -0.2, "distance": 5.0}
        flipped = project_points(points, **pose, px=130.0, **camera) * [-1, 1] + [256, 0]
        azimuth, elevation, theta, px = flip_pose(0.7, 0.4, -0.2, 130.0, 256.0)
        azimuth = azimuth + categories.get(name).flip_azimuth_offset
        seen = project_points(points, azimuth=azimuth, elevation=elevation, theta=theta, distance=5.0, px=px, **camera)
        nearest, _ = cKDTree(flipped).query(seen)
        assert nearest.max() < 1e-9


@pytest.mark.slow
class TestAgainstCads:
    """The declared symmetries are the CAD models' own, by what share of their diagonal the mirror image is off."""

    TOLERANCE = 0.03
    HANDED = ("boxing_glove", "grinder")  # one glove of a pair; a side handle that can be put on either side

    @pytest.mark.parametrize("category", [c for c in ALL if not c.chiral], ids=lambda c: c.name)
    def test_mirror_plane(self, category: Category):
        paths = sorted((SHARED / "photos" / "CAD" / category.name).glob("*.off"))
        if not paths or category.name in self.HANDED:
            pytest.skip(f"no CAD models of {category.name} under {SHARED}, or only of one hand")
        offs = [self.mirror_residual(path, "xyz".index(category.mirror_axis)) for path in paths]
        assert np.median(offs) < self.TOLERANCE

    @pytest.mark.parametrize("category", [c for c in ALL if set(c.symmetry) != {"none"}], ids=lambda c: c.name)
    def test_rotational_symmetry(self, category: Category):
        paths = sorted((SHARED / "photos" / "CAD" / category.name).glob("*.off"))
        if not paths:
            pytest.skip(f"no CAD models of {category.name} under {SHARED}")
        clouds = [surface_points(path, 2500) for path in paths]
        turns = category.symmetry_group.sampled(step_degrees=37)[1:]  # no divisor of a right angle
        for turn in turns[:: max(1, len(turns) // 8)]:
            offs = [self.residual(points, points @ turn.T) for points in clouds]
            assert np.median(offs) < self.TOLERANCE + 0.005

    @staticmethod
    def residual(points: np.ndarray, moved: np.ndarray) -> float:
        """How far a point of the moved model is from the model, root mean square as a share of the diagonal."""
        distances, _ = cKDTree(points).query(moved)
        return float(np.sqrt((distances**2).mean()) / np.linalg.norm(np.ptp(points, axis=0)))

    @staticmethod
    def mirror_residual(path: Path, axis: int) -> float:
        points = surface_points(path, 4000)
        mirrored = points.copy()
        mirrored[:, axis] *= -1
        return TestAgainstCads.residual(points, mirrored)


def surface_points(path: Path, n: int) -> np.ndarray:
    """(n, 3) points drawn evenly from the triangles of an OFF file, about the middle of its bounding box."""
    lines = path.read_text().split("\n")
    n_vertices, n_faces = (int(count) for count in lines[1].split()[:2])
    vertices = np.loadtxt(lines[2 : 2 + n_vertices])
    vertices -= (vertices.min(0) + vertices.max(0)) / 2
    corners = vertices[np.loadtxt(lines[2 + n_vertices :][:n_faces], usecols=(1, 2, 3), dtype=int)]
    a, b, c = corners.transpose(1, 0, 2)
    areas = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    rng = np.random.default_rng(0)
    drawn = rng.choice(len(areas), n, p=areas / areas.sum())
    u, v = rng.random((2, n, 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    return a[drawn] + u * (b - a)[drawn] + v * (c - a)[drawn]
