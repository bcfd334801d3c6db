package cli

import (
	"math/rand/v2"
)

// The words of made-up names: short, friendly, easy to say, and each pair a
// valid name. 64 × 64 pairs are enough for a project; a pair that is taken
// is drawn again.
var (
	adjectives = [...]string{
		"able", "amber", "ample", "apt", "bold", "brave", "brisk", "calm", "clear", "clever", "cosy", "crisp", "dapper", "deft", "eager", "early",
		"easy", "fair", "fleet", "fond", "fresh", "gentle", "glad", "golden", "grand", "green", "happy", "hardy", "honest", "jolly", "keen", "kind",
		"lively", "loyal", "lucid", "lucky", "mellow", "merry", "mild", "modest", "neat", "nimble", "noble", "patient", "plucky", "polite", "proud", "quick",
		"quiet", "ready", "robust", "royal", "sharp", "silver", "smart", "snug", "steady", "sunny", "swift", "tidy", "vivid", "warm", "wise", "witty",
	}
	nouns = [...]string{
		"acorn", "alder", "aspen", "badger", "basalt", "beaver", "birch", "bison", "brook", "cedar", "clover", "comet", "coral", "crane", "cricket", "curlew",
		"dolphin", "dune", "eagle", "elm", "falcon", "fern", "finch", "fjord", "fox", "garnet", "gecko", "glacier", "granite", "harbor", "hazel", "heron",
		"island", "ivy", "jasper", "kestrel", "lagoon", "lark", "linden", "lynx", "maple", "marten", "meadow", "moss", "oak", "orchid", "otter", "owl",
		"pebble", "pine", "plover", "poplar", "quail", "quartz", "raven", "reed", "robin", "rowan", "salmon", "sparrow", "spruce", "thistle", "willow", "wren",
	}
)

// madeUpName is like brave-otter.
func madeUpName() string {
	return adjectives[rand.IntN(len(adjectives))] + "-" + nouns[rand.IntN(len(nouns))]
}
