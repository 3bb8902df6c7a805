// Package dns relays DNS messages between the guest and the host's current resolvers,
// byte for byte but for the id: it reads only that and whether the message is a query, so
// every record type, EDNS and DNSSEC survive, and SERVFAIL is an answer like any other.
//
// # Invariants
//
//   - Each query has connected sockets to itself, with a source port that the kernel drew at random
//     and that lives for seconds and some dozens of queries, one after the other; and an id of its own. An
//     answer counts only from the resolver asked, with that id.
//   - A resolver that fails or stays silent for Config.Patience is not waited for: the next one is
//     asked, too, and the first answer is taken. For Config.Shun such a resolver is asked last.
//   - Queries in flight are bounded; further ones are dropped and counted, and the guest asks again.
package dns
