package promises

import (
	"flag"
	"testing"

	"go.uber.org/goleak"
)

// TestMain lets more tests run at a time than there are processors, since they wait for elections more than they compute,
// and holds all of them to leaving no goroutine behind.
func TestMain(m *testing.M) {
	testing.Init()
	if err := flag.Set("test.parallel", "4"); err != nil { // what the command line says comes later and counts
		panic(err)
	}
	// memberlist 0.7.0 waits for none of its goroutines: a probe under way ends by itself when its time is over.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probe"))
}
