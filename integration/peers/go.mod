// The programs that this project must stay compatible with, at the versions it
// is tested against. A module of its own, so that nothing of them reaches the
// main module. Build both with: go -C integration/peers build -o DIR tool
module github.com/diskrsync/diskrsync/integration/peers

go 1.26.0

tool (
	github.com/dop251/diskrsync/diskrsync
	github.com/dop251/spgz/spgz
)

require (
	github.com/VividCortex/ewma v1.2.0 // indirect
	github.com/acarl005/stripansi v0.0.0-20180116102854-5a71ef0e047d // indirect
	github.com/dop251/buse v1.2.0 // indirect
	github.com/dop251/diskrsync v1.3.0 // indirect
	github.com/dop251/nbd v1.0.1 // indirect
	github.com/dop251/spgz v1.2.1 // indirect
	github.com/mattn/go-runewidth v0.0.13 // indirect
	github.com/pkg/errors v0.9.1 // indirect
	github.com/rivo/uniseg v0.2.0 // indirect
	github.com/sirupsen/logrus v1.9.0 // indirect
	github.com/vbauerster/mpb/v7 v7.4.1 // indirect
	golang.org/x/crypto v0.0.0-20220312131142-6068a2e6cfdc // indirect
	golang.org/x/sys v0.0.0-20220715151400-c0bba94af5f8 // indirect
)
