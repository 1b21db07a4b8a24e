// Command compare is the usual script that stores the messages of an MQTT broker
// in PostgreSQL. It subscribes with paho at QoS 1 and a persistent session, and
// its handler does an INSERT. The README compares Mynah with it; the ledger of
// torture counts the messages that it loses. It has neither extra care nor
// deliberate mistakes.
//
//	go run ./bench/compare --broker tcp://127.0.0.1:1883 --database postgres://…
package main

import (
	"context"
	"flag"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/jackc/pgx/v5/pgxpool"
)

const table = `CREATE TABLE IF NOT EXISTS messages (
	id bigserial PRIMARY KEY,
	received_at timestamptz NOT NULL DEFAULT now(),
	topic text NOT NULL,
	payload text NOT NULL
)`

func main() {
	broker := flag.String("broker", "tcp://127.0.0.1:1883", "address of the MQTT broker")
	database := flag.String("database", "", "address of the database")
	flag.Parse()
	if err := run(*broker, *database); err != nil {
		log.Fatal(err)
	}
}

func run(broker, database string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	db, err := pgxpool.New(ctx, database)
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := db.Exec(ctx, table); err != nil {
		return err
	}
	save := func(_ mqtt.Client, m mqtt.Message) {
		_, err := db.Exec(ctx, "INSERT INTO messages (topic, payload) VALUES ($1, $2)", m.Topic(), string(m.Payload()))
		if err != nil {
			log.Printf("insert: %v", err)
		}
	}
	opts := mqtt.NewClientOptions().AddBroker(broker).SetClientID("postgres-bridge").
		SetCleanSession(false).SetResumeSubs(true).SetConnectRetry(true).SetConnectRetryInterval(time.Second).
		SetMaxReconnectInterval(time.Second).SetDefaultPublishHandler(save)
	opts.SetOnConnectHandler(func(c mqtt.Client) {
		if t := c.Subscribe("#", 1, save); t.Wait() && t.Error() != nil {
			log.Printf("subscribe: %v", t.Error())
		}
	})
	client := mqtt.NewClient(opts)
	if t := client.Connect(); t.Wait() && t.Error() != nil {
		return t.Error()
	}
	<-ctx.Done()
	client.Disconnect(250)
	return nil
}
