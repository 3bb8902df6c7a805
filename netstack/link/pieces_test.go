package link

import (
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	ft "slipway/netstack/internal/frametest"
)

// TestFrameOfManyPieces: a segment that gVisor has put together of many small writes goes
// out as any other.
func TestFrameOfManyPieces(t *testing.T) {
	for name, mode := range modes {
		t.Run(name, func(t *testing.T) {
			w := newLink(t, mode)
			var payload buffer.Buffer
			for piece := range slices.Chunk(ft.IP(header.TCPProtocolNumber, ft.Gate4, ft.Guest4, make([]byte, 1400)), 5) {
				if err := payload.Append(buffer.NewViewWithData(piece)); err != nil {
					t.Fatal(err)
				}
			}
			pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: header.EthernetMinimumSize, Payload: payload})
			pkt.NetworkProtocolNumber = header.IPv4ProtocolNumber
			w.AddHeader(pkt)
			var packets stack.PacketBufferList
			packets.PushBack(pkt)
			defer packets.Reset()
			before := w.Stats()
			if n, err := w.WritePackets(packets); n != 1 || err != nil {
				t.Errorf("wrote %d frames, %v", n, err)
			}
			after := w.Stats()
			if frames, size := after.TxPackets-before.TxPackets, after.TxBytes-before.TxBytes; frames != 1 || size != uint64(pkt.Size()) {
				t.Errorf("%d frames of %d bytes went out, want one of %d", frames, size, pkt.Size())
			}
		})
	}
}
