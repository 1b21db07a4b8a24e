// Package e2e holds the black-box tests: the real binary, started as a user
// starts it, and the clients that users have (mosquitto_pub and mosquitto_sub,
// MQTT.js, paho.mqtt.golang, plain sockets, SQL). Nothing here imports the
// product; what a test knows of it stands in PROTOCOL.md.
//
// The tests need PostgreSQL, Mosquitto's programs and node with npm, all of which
// `make setup` installs. They start and stop everything else themselves.
package e2e
